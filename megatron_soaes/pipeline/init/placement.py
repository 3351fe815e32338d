"""A simple layout for a model on so many GPUs: as little model parallelism as its state allows.

Weights are bf16, gradients fp32; master weights and both moments of AdamW are fp32 and split over
the replicas (ZeRO-1, Rajbhandari et al. 1910.02054): 2 + 4 + 12 / DP bytes for each parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.check_arithmetic import divisors
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.problems import did_you_mean
from megatron_soaes.recipe.schema import ModelSource
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout

NODE = 8
"""GPUs of a full node."""
ROOM = 0.6
"""Share of a GPU's memory for weights, gradients and optimizer; activations take the rest."""
WEIGHT_AND_GRADIENT_BYTES = 2 + 4
OPTIMIZER_BYTES = 12
GIB = 2**30


@dataclass(frozen=True)
class Placement:
    """Where a model is trained."""

    gpu: str
    memory_gib: int
    nodes: int
    gpus_per_node: int
    layout: Layout
    state_gib: float
    """Weights, gradients and optimizer on the fullest GPU."""


def place(shape: ModelShape, gpus: int, gpu: str) -> Placement:
    """The layout with the fewest GPUs a replica, tensor parallelism within a node first.

    Raises UserError for an unknown kind of GPU, a number that fills no whole nodes, and where no
    layout has room for the model's state.
    """
    if gpu not in GPUS:
        fix = did_you_mean(gpu, GPUS)
        raise UserError("--gpu", repr(gpu), "a GPU kind we have figures of", fix)
    per_node = min(gpus, NODE)
    if gpus < 1 or gpus % per_node:
        raise UserError(
            "--gpus", str(gpus), f"1 to {NODE}, or a multiple of {NODE}: whole nodes",
            "Edit the layout and `cluster` of the recipe where nodes have another size.",
        )  # fmt: skip
    memory = GPUS[gpu].memory_gib
    best: tuple[float, Layout] | None = None
    for layout in _layouts(shape, gpus, per_node):
        needed = state_gib(shape, layout)
        if needed <= ROOM * memory:
            return Placement(gpu, memory, gpus // per_node, per_node, layout, needed)
        best = min(best or (needed, layout), (needed, layout), key=lambda one: one[0])
    least = "" if best is None else f", and no layout needs less than {best[0]:.0f}"
    raise UserError(
        "--gpus", f"{gpus} x {gpu}",
        f"{ROOM * memory:.0f} GiB on each GPU for weights, gradients and optimizer of "
        f"{shape.parameters / 1e9:.1f}B parameters{least}",
        "Give more GPUs, or a kind with more memory.",
    )  # fmt: skip


def _layouts(shape: ModelShape, gpus: int, per_node: int) -> Iterator[Layout]:
    """Those that fit the model's shape, by the size of a replica, then by pipeline stages."""
    pairs = [
        (tensor, pipeline)
        for tensor in divisors(per_node)
        for pipeline in divisors(shape.layers)
        if gpus % (tensor * pipeline) == 0 and _divides(shape, tensor)
    ]
    for tensor, pipeline in sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[1])):
        yield Layout(
            tensor_parallel=tensor,
            sequence_parallel=tensor > 1,
            pipeline_parallel=pipeline,
            data_parallel=gpus // (tensor * pipeline),
        )


def _divides(shape: ModelShape, tensor: int) -> bool:
    whole = (shape.heads, shape.ffn, _vocabulary_multiple())
    return all(number % tensor == 0 for number in whole) and (
        shape.kv_heads % tensor == 0 or tensor % shape.kv_heads == 0
    )


def _vocabulary_multiple() -> int:
    return int(ModelSource.model_fields["vocab_size_multiple"].default)


def state_gib(shape: ModelShape, layout: Layout) -> float:
    """Weights, gradients and optimizer of the fullest pipeline stage on one GPU, in GiB."""
    tables = 1 if shape.tied_embeddings or layout.pipeline_parallel > 1 else 2
    embeddings = tables * shape.padded_vocab_size(_vocabulary_multiple()) * shape.hidden
    layers = shape.layers // layout.pipeline_parallel * shape.layer_parameters
    size = WEIGHT_AND_GRADIENT_BYTES + OPTIMIZER_BYTES / layout.data_parallel
    return (layers + embeddings) / layout.tensor_parallel * size / GIB
