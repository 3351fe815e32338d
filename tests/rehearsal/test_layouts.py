"""Layouts in small keep every kind of parallelism, and 8 processes cover every pair of them."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.rehearsal.layouts import (
    DIMENSIONS,
    layers_for,
    layout_text,
    only,
    pair_cover,
    small_values,
    used_dimensions,
)

LAYERS = 48


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any layout that the rules allow for 48 layers."""
    degree = st.sampled_from([1, 2, 4, 8])
    tensor, pipeline = draw(degree), draw(degree)
    chunks = draw(st.sampled_from([1, 2, 3])) if pipeline > 1 else 1
    ends = draw(st.sampled_from([{}, {"first": 1}, {"last": -1}])) if pipeline > 2 else {}
    share = LAYERS // pipeline
    moved = chunks * (pipeline - 1)
    given_ends = {f"{end}_stage_layers": share - sign * moved for end, sign in ends.items()}
    if any(count < 1 for count in given_ends.values()):
        given_ends = {}
    return Layout(
        tensor_parallel=tensor,
        sequence_parallel=tensor > 1 and draw(st.booleans()),
        pipeline_parallel=pipeline,
        virtual_pipeline=chunks,
        context_parallel=draw(degree),
        data_parallel=draw(degree),
        **given_ends,
    )


@given(layouts())
def test_every_degree_above_one_becomes_two_and_every_option_stays(layout: Layout) -> None:
    layers = layers_for([layout])
    small = layout.model_copy(update=small_values(layout, LAYERS, layers))
    for name in (*DIMENSIONS, "virtual_pipeline"):
        assert getattr(small, name) == min(getattr(layout, name), 2)
    assert small.sequence_parallel == layout.sequence_parallel
    given_layers = (layout.first_stage_layers, layout.last_stage_layers)
    assert bool(small.first_stage_layers or small.last_stage_layers) == any(given_layers)


@given(layouts())
def test_the_layers_can_be_cut_and_uneven_stays_uneven_the_same_way_round(layout: Layout) -> None:
    layers = layers_for([layout])
    small = layout.model_copy(update=small_values(layout, LAYERS, layers))
    if small.pipeline_parallel == 1:
        return
    end = small.first_stage_layers or small.last_stage_layers
    parts = [end, layers - end] if end else [layers // 2, layers // 2]
    assert all(part > 0 and part % small.virtual_pipeline == 0 for part in parts)
    wanted = layout.first_stage_layers or layout.last_stage_layers
    if end and wanted:
        assert (end < layers / 2) == (wanted < LAYERS / layout.pipeline_parallel)


@pytest.mark.parametrize(
    ("first", "last", "expected"), [(6, 10, 1), (10, 6, 3), (8, 8, 2)], ids=["less", "more", "same"]
)
def test_of_two_uneven_ends_one_says_it_all(first: int, last: int, expected: int) -> None:
    layout = Layout(pipeline_parallel=4, first_stage_layers=first, last_stage_layers=last)
    small = layout.model_copy(update=small_values(layout, LAYERS, layers_for([layout])))
    assert (small.first_stage_layers, small.last_stage_layers) == (expected, None)


@given(st.sets(st.sampled_from("abcdefg")).map(sorted), st.integers(2, 4))
def test_every_pair_is_in_one_of_the_choices(dimensions: list[str], most: int) -> None:
    chosen = pair_cover(dimensions, most)
    assert all(len(one) <= most for one in chosen)
    for pair in combinations(dimensions, 2):
        assert any(set(pair) <= set(one) for one in chosen)


def test_three_runs_cover_the_pairs_of_four_dimensions() -> None:
    assert len(pair_cover(DIMENSIONS, 3)) == 3


@given(layouts(), st.sets(st.sampled_from(DIMENSIONS)))
def test_a_dimension_goes_with_all_that_depends_on_it(layout: Layout, kept: set[str]) -> None:
    chosen = only(layout, sorted(kept))
    assert set(used_dimensions(chosen)) == set(used_dimensions(layout)) & kept
    assert chosen.tensor_parallel > 1 or not chosen.sequence_parallel
    if chosen.pipeline_parallel == 1:
        assert chosen.virtual_pipeline == 1
        assert chosen.first_stage_layers is None
        assert chosen.last_stage_layers is None


def test_a_layout_in_words() -> None:
    layout = Layout(
        tensor_parallel=2, sequence_parallel=True, pipeline_parallel=2, virtual_pipeline=2,
        first_stage_layers=2, context_parallel=2, data_parallel=2,
    )  # fmt: skip
    assert layout_text(layout) == "TP2+SP x PP2 (2 chunks, uneven) x CP2 x DP2"
    assert layout_text(Layout()) == "one process"
