"""Bytes, by arithmetic: memory of each rank, checkpoints and teacher stores on the disk.

Weights, gradients and optimizer states are exact but for the padding of Megatron-Core's buffers (at
most 64 numbers a parameter). Saved activations are those of `activations`. What a backward pass
works with, what a save gathers and the margin are estimates, made to be rather too large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from megatron_soaes.planner.activations import (
    NO_RECOMPUTE,
    WIDTHS,
    Implementation,
    Sizes,
    fp8_layers,
    frequencies_bytes,
    kept_logits_bytes,
    layer_bytes,
    logits_bytes,
    peak_bytes,
    recomputed_bytes,
    sizes_of,
)
from megatron_soaes.planner.parameters import (
    is_last,
    layer_matrices,
    model_parameters,
    rank_parameters,
)
from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.schema import CaptureStage
from megatron_soaes.recipe.shapes import ModelShape

LOSS_CHUNK_BYTES = 256 << 20
"""fp32 logits that the losses work on at once on a GPU (losses/vocab_parallel.py)."""
LOSS_CHUNKS = 2
"""Such chunks at once in the cross entropy: the logits and their log-softmax."""
DIVERGENCE_CHUNKS = 5
"""The same with a teacher beside: both log-probabilities, and up to three terms of a divergence."""
RUNTIME_BYTES = 3 << 30
"""Assumed, not measured: the CUDA context, NCCL's buffers, workspaces of cuBLAS and cuDNN."""
FRAGMENTATION = 0.05
"""Assumed, not measured: the share of what a step allocates that the allocator cannot use."""
BUCKET_NUMBERS = 40_000_000
BUCKET_NUMBERS_PER_REPLICA = 1_000_000
"""Megatron-Core 0.16.1 cuts gradients that are reduced beside the backward pass into buckets of
the larger of the two (distributed_data_parallel.py)."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes on a rank of one pipeline stage when it needs most."""

    weights: int
    gradients: int
    optimizer: int
    """Main weights and moments, this rank's share."""
    activations: int
    """Saved by the micro-batches in flight, and what the backward pass of one layer works with."""
    logits: int
    """Of one micro-batch with their gradient and what the loss works with; 0 but on the last."""
    fp8_copies: int
    """Of the weights, kept from one micro-batch of a step to the next."""
    teacher: int
    """Models that are not trained: weights, FP8 copies, one layer's forward pass and logits."""
    saving: int
    """What a save gathers on the GPU, when nothing of a step is there."""
    margin: int
    """See RUNTIME_BYTES and FRAGMENTATION."""

    @property
    def lasting(self) -> int:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimizer + self.fp8_copies + self.teacher

    @property
    def total(self) -> int:
        """All of it, but of a step and a save the larger: they are never there together."""
        return self.allocated + self.margin

    @property
    def allocated(self) -> int:
        """All but the margin: what PyTorch's allocator gives out at most."""
        return self.lasting + max(self.activations + self.logits, self.saving)


def rank_memory(
    workload: Workload, stage: int, implementation: Implementation = "transformer_engine"
) -> RankMemory:
    """What each rank of a pipeline stage needs; the same on all its tensor-parallel ranks.

    `implementation` says whose layers are counted, see `activations`. Weights are bf16 or fp32.
    """
    parameters = rank_parameters(workload, stage)
    trained = workload.optimizer is not None
    memory = RankMemory(
        weights=parameters * WIDTHS[workload.precision.dtype],
        gradients=parameters * _gradient_width(workload) if trained else 0,
        optimizer=_share(workload, parameters) * _state_width(workload) if trained else 0,
        activations=_activations(workload, stage, implementation),
        logits=_logits(workload) if is_last(workload.layout, stage) else 0,
        fp8_copies=_fp8_copies(workload, stage),
        teacher=sum(_read_only(one, stage, implementation) for one in workload.read_only),
        saving=_saving(workload, stage, parameters) if trained else 0,
        margin=0,
    )
    return replace(memory, margin=RUNTIME_BYTES + math.ceil(FRAGMENTATION * memory.total))


def _gradient_width(workload: Workload) -> int:
    """Bytes of a gradient in its buffer: fp32 unless the optimizer reads fewer bits."""
    assert workload.optimizer is not None
    aware = workload.optimizer.precision_aware
    return WIDTHS[aware.main_gradients if aware else "fp32"]


def _state_width(workload: Workload) -> int:
    """Bytes that AdamW keeps of a weight; of fp32 weights the main weights are the weights."""
    assert workload.optimizer is not None
    aware = workload.optimizer.precision_aware
    # Of an fp32 main weight Transformer Engine keeps the 16 bits that its bf16 weight has not.
    main = WIDTHS["bf16" if aware else "fp32"]
    first = WIDTHS[aware.first_moment if aware else "fp32"]
    second = WIDTHS[aware.second_moment if aware else "fp32"]
    return first + second + (main if workload.precision.dtype == "bf16" else 0)


def _share(workload: Workload, parameters: int) -> int:
    """Parameters whose optimizer state is this rank's; all replicas and their parts share it."""
    return math.ceil(parameters / _sharing(workload))


def _sharing(workload: Workload) -> int:
    """Ranks among which Megatron-Core's distributed optimizer splits its state."""
    return workload.layout.data_parallel * workload.layout.context_parallel


def _activations(workload: Workload, stage: int, implementation: Implementation) -> int:
    sizes = sizes_of(workload, workload.shape)
    cached = workload.layout.virtual_pipeline * frequencies_bytes(workload)
    if workload.optimizer is None:
        return cached + _forward(workload, sizes, implementation)
    saved = peak_bytes(workload, stage, implementation)
    return saved + cached + _backward(workload, sizes, implementation)


def _forward(workload: Workload, sizes: Sizes, implementation: Implementation) -> int:
    """At most what one layer would save if it were trained."""
    fp8 = workload.precision.fp8 is not None
    return layer_bytes(workload, sizes, NO_RECOMPUTE, implementation, fp8)


def _backward(workload: Workload, sizes: Sizes, implementation: Implementation) -> int:
    """One layer's recomputed activations, and what its largest part, the MLP, works with.

    That is the gradients of the MLP's inner tensors, of its input (and that input gathered from the
    sequence-parallel ranks), of the residual, and one weight gradient before it is added up.
    """
    fp8 = workload.precision.fp8 is not None
    recomputed = recomputed_bytes(workload, implementation, fp8)
    gathered = 2 if workload.layout.tensor_parallel > 1 else 1
    numbers = 3 * sizes.tokens * sizes.ffn
    numbers += sizes.hidden * (gathered * sizes.tokens + 2 * sizes.shared)
    return recomputed + (numbers + 2 * sizes.ffn * sizes.hidden) * sizes.width


def _logits(workload: Workload) -> int:
    """Saved logits, their gradient and the chunks in fp32 that the loss works on."""
    columns = workload.vocab_size // workload.layout.tensor_parallel
    tokens = workload.tokens // workload.layout.context_parallel
    chunk = min(tokens, max(1, LOSS_CHUNK_BYTES // (4 * columns))) * columns * 4
    chunks = LOSS_CHUNKS if workload.teacher is None else DIVERGENCE_CHUNKS
    if workload.optimizer is None:
        return logits_bytes(workload) + chunks * chunk
    return kept_logits_bytes(workload) + logits_bytes(workload) + chunks * chunk


def _fp8_copies(workload: Workload, stage: int) -> int:
    """The matrices of FP8 layers and, where there is a backward pass, their transposes."""
    if workload.precision.fp8 is None:
        return 0
    chunks = range(workload.layout.virtual_pipeline)
    layers = sum(sum(fp8_layers(workload, stage, chunk)) for chunk in chunks)
    copies = 1 if workload.optimizer is None else 2
    return copies * layers * _fp8_matrices(workload, workload.shape)


def _fp8_matrices(workload: Workload, shape: ModelShape) -> int:
    """One FP8 copy of a layer's matrices; of mxfp8 with a scale of one byte for 32 numbers."""
    numbers = layer_matrices(shape, workload.layout.tensor_parallel)
    setting = workload.precision.fp8
    scales = numbers // 32 if setting is not None and setting.recipe == "mxfp8" else 0
    return numbers + scales


def _read_only(workload: Workload, stage: int, implementation: Implementation) -> int:
    weights = model_parameters(workload.shape, workload.vocab_size, workload.layout, stage)
    total = weights * WIDTHS[workload.precision.dtype] + _fp8_copies(workload, stage)
    total += _activations(workload, stage, implementation)
    return total + (logits_bytes(workload) if is_last(workload.layout, stage) else 0)


def _saving(workload: Workload, stage: int, parameters: int) -> int:
    """One bucket of fp32 state gathered from all who share it, and this rank's part of it.

    Megatron-Core 0.16.1 (get_parameter_state_dp_zero). Only what is reduced beside the backward
    pass, on the first pipeline stage, lies in buckets; a bucket is full with the parameter that
    reaches its size, at most the embedding. Virtual chunks have buffers of their own, of which this
    is the sum: too large.
    """
    sharing, numbers = _sharing(workload), parameters
    layout = workload.layout
    if workload.overlap.grad_reduce and stage == 0 and layout.virtual_pipeline == 1:
        embedding = workload.vocab_size // layout.tensor_parallel * workload.shape.hidden
        bucket = max(BUCKET_NUMBERS, BUCKET_NUMBERS_PER_REPLICA * sharing)
        numbers = min(parameters, bucket + embedding)
    return 4 * (numbers + math.ceil(numbers / sharing))


def checkpoint_bytes(workload: Workload) -> int:
    """Tensors of a whole checkpoint, all ranks together, vocabulary padding included.

    Every weight once in the model's arithmetic; of a model that is trained also the main weight and
    both moments, which are written in fp32 whatever the optimizer keeps.
    """
    whole = replace(workload.shape, vocab_size=workload.vocab_size)
    state = 0 if workload.optimizer is None else 3 * WIDTHS["fp32"]
    return whole.parameters * (WIDTHS[workload.precision.dtype] + state)


def capture_store_bytes(stage: CaptureStage, samples: int) -> int:
    """Shards of a teacher store of so many samples: ids, log-probabilities and the rest's mass."""
    position = stage.store.entries * (4 + WIDTHS[stage.store.dtype]) + WIDTHS["fp32"]
    return samples * stage.sequence_length * position
