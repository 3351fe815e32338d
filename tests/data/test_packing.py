"""Bins of conversations: whole, nearly full, the same every time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from megatron_soaes.data.packing import Packing, best_fit_decreasing, in_order

Pack = Callable[[NDArray[np.int64], int], Packing]
CAPACITY = 40

some_lengths = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=60)


def loads(packing: Packing, lengths: NDArray[np.int64]) -> list[int]:
    return [int(lengths[packing[p]].sum()) for p in range(len(packing))]


@pytest.mark.parametrize("pack", [best_fit_decreasing, in_order])
@given(lengths=some_lengths)
def test_every_item_lies_whole_in_one_pack(pack: Pack, lengths: list[int]) -> None:
    array = np.array(lengths)
    packing = pack(array, CAPACITY)
    assert sorted(packing.items.tolist()) == list(range(len(lengths)))
    assert max(loads(packing, array)) <= CAPACITY
    assert all(len(packing[p]) for p in range(len(packing)))


@given(lengths=some_lengths)
def test_best_fit_packs_as_the_textbook_does(lengths: list[int]) -> None:
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else CAPACITY) - length)
    array = np.array(lengths)
    packing = best_fit_decreasing(array, CAPACITY)
    assert sorted(loads(packing, array)) == sorted(CAPACITY - room for room in rooms)


@given(lengths=some_lengths)
def test_in_order_keeps_the_order_and_opens_a_pack_only_when_it_must(lengths: list[int]) -> None:
    array = np.array(lengths)
    packing = in_order(array, CAPACITY)
    assert packing.items.tolist() == list(range(len(lengths)))
    for p, load in enumerate(loads(packing, array)[:-1]):
        assert load + lengths[packing[p + 1][0]] > CAPACITY


def test_best_fit_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(50, 1500, 20_000)
    packing = best_fit_decreasing(lengths, 4097)
    assert lengths.sum() / (len(packing) * 4097) > 0.99
