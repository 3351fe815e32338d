"""Every distinct rank of a true layout, built here one after the other without weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import apply_factories

from megatron_soaes.accelerator.pretended import pretended_rank
from megatron_soaes.errors import UserError
from megatron_soaes.models.build import BuildOptions
from megatron_soaes.models.families import weight_table
from megatron_soaes.planner.parameters import model_parameters
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.engine import build_chunks

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes of a part of a tensor."""


@dataclass
class Built:
    """What the ranks of one layout hold together."""

    ranks: int = 0
    largest_bytes: int = 0
    """Weights of the rank that has most."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the whole tensors, by their keys in a checkpoint."""
    boxes: dict[str, set[Box]] = field(default_factory=dict)


def distinct_ranks(layout: Layout) -> Iterator[tuple[int, int]]:
    """Ranks that hold different weights or tokens, with their pipeline stages.

    The first replica's: Megatron-Core numbers ranks tensor first, then context, data, pipeline.
    """
    per_stage = layout.processes // layout.pipeline_parallel
    for stage in range(layout.pipeline_parallel):
        for place in range(layout.tensor_parallel * layout.context_parallel):
            yield stage * per_stage + place, stage


def build_ranks(shape: ModelShape, options: BuildOptions) -> Built:
    """Build the model of every distinct rank; raises UserError where one is not as planned."""
    layout, built = options.layout, Built()
    for rank, stage in distinct_ranks(layout):
        with pretended_rank(
            rank,
            layout.processes,
            tensor=layout.tensor_parallel,
            pipeline=layout.pipeline_parallel,
            virtual_pipeline=layout.virtual_pipeline,
            context=layout.context_parallel,
        ):
            chunks = build_chunks(shape, options)
            weights = [weight for chunk in chunks for weight in chunk.parameters()]
            for chunk in chunks:
                state = chunk.sharded_state_dict()
                apply_factories(state)  # a gated projection is one tensor here, two parts there
                _take(built, list(nested_values(state)))
        planned = model_parameters(shape, options.padded_vocab_size, layout, stage)
        found = sum(one.numel() for one in weights)
        if planned != found:
            raise UserError(
                f"rank {rank} (pipeline stage {stage})", f"{found:,} parameters",
                f"{planned:,}, as planned", "This is a defect of the planner: please report it.",
            )  # fmt: skip
        built.ranks += 1
        built.largest_bytes = max(built.largest_bytes, sum(one.nbytes for one in weights))
    return built


def _take(built: Built, shards: Sequence[object]) -> None:
    for shard in shards:
        if isinstance(shard, ShardedTensor):
            shape = tuple(shard.global_shape)
            built.shapes[shard.key] = shape
            stacked = (1,) * (len(shape) - len(shard.local_shape))
            box = (tuple(shard.global_offset), (*stacked, *shard.local_shape))
            built.boxes.setdefault(shard.key, set()).add(box)


def check_built(built: Built, shape: ModelShape, vocab_size: int) -> Iterator[UserError]:
    """Whether the ranks together hold every tensor of the model once, and none besides."""
    padded = replace(shape, vocab_size=vocab_size)
    expected = {weight.key: weight.global_shape(padded) for weight in weight_table(shape)}
    for key in sorted({*expected, *built.shapes}):
        wanted, found = expected.get(key), built.shapes.get(key)
        if wanted != found:
            yield UserError(
                f"tensor {key} of the layout", _said(found), _said(wanted),
                "This is a defect of the layer specs: please report it.",
            )  # fmt: skip
        elif found is not None and _volume(built.boxes[key]) != math.prod(found):
            yield UserError(
                f"tensor {key} of the layout", f"parts of {_volume(built.boxes[key]):,} elements",
                f"{math.prod(found):,}, each on one rank", "Choose another layout.",
            )  # fmt: skip


def _volume(boxes: set[Box]) -> int:
    return sum(math.prod(sizes) for _, sizes in boxes)


def _said(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else f"shape {list(shape)}"
