"""Context-parallel ranks share out every document, each the same amount of causal work."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_soaes.models.zigzag import chunks_of_rank, gathered_order, positions_of_rank


def packed(units: list[int], ranks: int) -> list[int]:
    """cu_seqlens of documents of so many units of 2 * ranks tokens."""
    bounds = [0]
    for count in units:
        bounds.append(bounds[-1] + count * 2 * ranks)
    return bounds


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 4))
def test_ranks_hold_every_token_once_and_gathering_restores_the_order(
    units: list[int], ranks: int
) -> None:
    bounds = packed(units, ranks)
    parts = [positions_of_rank(bounds, rank, ranks) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    gathered = torch.cat(parts)
    assert gathered[gathered_order(bounds, ranks)].tolist() == list(range(bounds[-1]))


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 4))
def test_every_rank_sees_as_many_keys(units: list[int], ranks: int) -> None:
    bounds = packed(units, ranks)
    work = {
        sum(
            chunk.length * (chunk.start - chunk.document + chunk.length)
            for chunk in chunks_of_rank(bounds, rank, ranks)
        )
        for rank in range(ranks)
    }
    assert len(work) == 1


def test_the_order_is_that_of_megatron_core() -> None:
    assert positions_of_rank([0, 8], 0, 2).tolist() == [0, 1, 6, 7]
    assert positions_of_rank([0, 8], 1, 2).tolist() == [2, 3, 4, 5]
