"""Which conversations share a sequence: bins of a fixed number of tokens, by length alone.

Both ways depend on nothing but the lengths and the capacity, so every rank and every layout packs
alike. Neither splits a conversation.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Packing:
    """Items laid into packs."""

    items: NDArray[np.int64]
    """Item numbers, pack after pack; ascending within a pack."""
    bounds: NDArray[np.int64]
    """[packs + 1]; pack p holds items[bounds[p] : bounds[p + 1]]."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, pack: int) -> NDArray[np.int64]:
        return self.items[self.bounds[pack] : self.bounds[pack + 1]]


def best_fit_decreasing(lengths: NDArray[np.int64], capacity: int) -> Packing:
    """Longest item first, each into the fullest pack that has room for it.

    lengths: [items], each from 1 to `capacity`. At most 11/9 of the fewest packs possible, plus 1
    (Johnson et al. 1974); in practice nearly full ones. Items of one length are placed together and
    packs with the same room are kept together, so a million items take about a second.
    """
    order = np.argsort(-lengths, kind="stable")
    pack_of = np.empty(len(lengths), dtype=np.int64)
    open_packs: dict[int, list[NDArray[np.int64]]] = {}
    rooms: list[int] = []
    """The keys of `open_packs`, ascending."""
    packs = 0

    def put_back(numbers: NDArray[np.int64], room: int) -> None:
        if room and len(numbers):
            if room not in open_packs:
                insort(rooms, room)
            open_packs.setdefault(room, []).append(numbers)

    values, counts = np.unique(lengths, return_counts=True)
    placed = 0
    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        left = count
        while left:
            at = bisect_left(rooms, length)
            if at < len(rooms):
                room = rooms.pop(at)
                numbers = np.concatenate(open_packs.pop(room))
            else:
                room = capacity
                needed = -(-left // (capacity // length))
                numbers = np.arange(packs, packs + needed)
                packs += needed
            # A pack that took one such item is still the fullest with room for another.
            each = room // length
            taken = min(left, each * len(numbers))
            full, rest = divmod(taken, each)
            chosen = np.repeat(numbers[:full], each)
            if rest:
                chosen = np.concatenate((chosen, np.repeat(numbers[full], rest)))
            pack_of[order[placed : placed + taken]] = chosen
            placed, left = placed + taken, left - taken
            put_back(numbers[:full], room - each * length)
            if rest:
                put_back(numbers[full : full + 1], room - rest * length)
            put_back(numbers[full + (rest > 0) :], room)
    items = np.argsort(pack_of, kind="stable")
    bounds = np.concatenate(([0], np.cumsum(np.bincount(pack_of, minlength=packs))))
    return Packing(items, bounds.astype(np.int64))


def in_order(lengths: NDArray[np.int64], capacity: int) -> Packing:
    """Items in the order given, a new pack whenever the next item has no room; for curricula."""
    ends = np.cumsum(lengths)
    bounds = [0]
    while bounds[-1] < len(lengths):
        before = ends[bounds[-1] - 1] if bounds[-1] else 0
        bounds.append(int(np.searchsorted(ends, before + capacity, side="right")))
    return Packing(np.arange(len(lengths)), np.array(bounds, dtype=np.int64))
