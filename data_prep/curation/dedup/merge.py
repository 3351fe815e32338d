"""Sorted 64-bit keys of many shards, merged in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data_prep.curation.dedup.shingles import UInt64

MERGE_KEYS = 2**22


def key_ranges(keys: Sequence[UInt64], budget: int = MERGE_KEYS) -> Iterator[list[slice]]:
    """Cut rising keys of every shard at the same values, so that equal keys stay together.

    Yields one slice a shard, range after range of rising keys. The values are those that cut the
    64-bit numbers into equal parts, so hashes come in ranges of about `budget` keys over all
    shards; only a single hash more frequent than that makes a range longer.
    """
    total = sum(map(len, keys))
    parts = max(1, -(-total // budget))
    starts = [0] * len(keys)
    for part in range(1, parts + 1):
        if part == parts:
            stops = [len(shard) for shard in keys]
        else:
            edge = np.uint64((part << 64) // parts)
            stops = [int(np.searchsorted(shard, edge)) for shard in keys]
        yield [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]
        starts = stops


def first_of_equal(rising: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """For every row of a sorted table the place of the first row equal to it.

    `rising[i]` says that row `i + 1` differs from row `i`.
    """
    places = np.zeros(len(rising) + 1, dtype=np.int64)
    places[1:] = np.where(rising, np.arange(1, len(rising) + 1), 0)
    return np.maximum.accumulate(places)
