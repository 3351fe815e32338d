"""Parameters against the published counts, and rank by rank against Megatron-Core's own modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.accelerator.pretended import pretended_rank
from megatron_soaes.models.build import BuildOptions
from megatron_soaes.planner.parameters import layers_of, rank_parameters
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.engine import build_chunks
from tests.planner.shapes import (
    LLAMA3_8B,
    LLAMA3_70B,
    QWEN2_7B,
    QWEN2_72B,
    QWEN2_HALF_B,
    QWEN3_8B,
    QWEN3_32B,
    TINY,
    workload,
)

PUBLISHED = {
    "Qwen2.5-7B": (QWEN2_7B, 7_615_616_512),
    "Qwen2.5-72B": (QWEN2_72B, 72_706_203_648),
    "Qwen3-8B": (QWEN3_8B, 8_190_735_360),
    "Qwen3-32B": (QWEN3_32B, 32_762_123_264),
    "Llama-3-8B": (LLAMA3_8B, 8_030_261_248),
    "Llama-3-70B": (LLAMA3_70B, 70_553_706_496),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_on_one_rank_has_the_published_parameters(name: str) -> None:
    shape, published = PUBLISHED[name]
    assert shape.parameters == published
    assert rank_parameters(workload(shape, vocab_size=shape.vocab_size), 0) == published


def pipeline(stages: int, virtual: int = 1, **changes: int) -> Layout:
    return Layout(pipeline_parallel=stages, virtual_pipeline=virtual, **changes)


def test_uneven_ends_leave_the_rest_to_the_middle() -> None:
    layout = pipeline(4, first_stage_layers=17, last_stage_layers=19)
    assert [layers_of(layout, 80, stage) for stage in range(4)] == [[17], [22], [22], [19]]


def test_a_stage_cuts_its_layers_evenly_into_chunks() -> None:
    layout = pipeline(2, virtual=4, first_stage_layers=12)
    assert layers_of(layout, 32, 0) == [3, 3, 3, 3]
    assert layers_of(layout, 32, 1) == [5, 5, 5, 5]


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_all_ranks_together_hold_each_weight_once(tensor: int, stages: int, tied: bool) -> None:
    """But for norms, which every tensor-parallel rank has, and the copy of a tied embedding."""
    shape = replace(QWEN2_72B, tied_embeddings=tied)
    layout = Layout(tensor_parallel=tensor, pipeline_parallel=stages)
    asked = workload(shape, layout, vocab_size=shape.vocab_size)
    together = tensor * sum(rank_parameters(asked, stage) for stage in range(stages))
    norms = (2 * shape.layers + 1) * shape.hidden
    copies = shape.vocab_size * shape.hidden if tied and stages > 1 else 0
    assert together - (tensor - 1) * norms - copies == shape.parameters


TRUE_LAYOUTS = {
    "72b-on-64": (
        QWEN2_72B,
        Layout(tensor_parallel=8, sequence_parallel=True, pipeline_parallel=4, data_parallel=2),
    ),
    "72b-capture": (
        QWEN2_72B,
        Layout(tensor_parallel=8, sequence_parallel=True, data_parallel=8),
    ),
    "7b-on-8": (QWEN2_7B, Layout(tensor_parallel=2, sequence_parallel=True, data_parallel=4)),
    "72b-uneven": (
        QWEN2_72B,
        Layout(tensor_parallel=8, pipeline_parallel=4, first_stage_layers=19, last_stage_layers=17),
    ),
    "72b-virtual": (QWEN2_72B, Layout(tensor_parallel=4, pipeline_parallel=4, virtual_pipeline=5)),
    "tied-on-one-stage": (QWEN2_HALF_B, Layout(tensor_parallel=2)),
    "tied-on-two-stages": (QWEN2_HALF_B, Layout(tensor_parallel=2, pipeline_parallel=2)),
    "norms-on-heads": (QWEN3_8B, Layout(tensor_parallel=4, context_parallel=2)),
    "fewer-kv-heads-than-ranks": (replace(TINY, kv_heads=2), Layout(tensor_parallel=4)),
    "uneven-chunks": (
        replace(TINY, layers=10, tied_embeddings=True),
        Layout(pipeline_parallel=3, virtual_pipeline=2, first_stage_layers=2),
    ),
}


@pytest.mark.parametrize("name", TRUE_LAYOUTS)
def test_every_stage_is_what_megatron_core_builds(name: str) -> None:
    shape, layout = TRUE_LAYOUTS[name]
    asked = workload(shape, layout)
    for stage in range(layout.pipeline_parallel):
        chunks = parameters_built(shape, layout, stage, asked.vocab_size)
        assert rank_parameters(asked, stage) == sum(chunks), stage


def parameters_built(shape: ModelShape, layout: Layout, stage: int, vocab_size: int) -> list[int]:
    """Of each chunk on the last tensor-parallel rank of a stage; nothing is ever written there."""
    rank = stage * (layout.processes // layout.pipeline_parallel) + layout.tensor_parallel - 1
    with pretended_rank(
        rank,
        layout.processes,
        tensor=layout.tensor_parallel,
        pipeline=layout.pipeline_parallel,
        virtual_pipeline=layout.virtual_pipeline,
        context=layout.context_parallel,
    ):
        chunks = build_chunks(shape, BuildOptions(torch.bfloat16, vocab_size, layout))
        return [sum(one.numel() for one in chunk.parameters()) for chunk in chunks]
