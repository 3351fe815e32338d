"""Texts as n-grams: runs of 1 to 3 units (a Han, kana or hangul character, or a word).

Scoring sees n-grams as 64-bit hashes, many texts at a time; training and explanations see them as
text. Both come from the units of `dedup.shingles`.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt

from data_prep.curation.dedup.shingles import SINGLE_RANGES, UInt64, shingle

MAX_UNITS = 3
COMBINE = np.uint64(0xA0761D6478BD642F)
_BORDERS = list(chain.from_iterable((first, last + 1) for first, last in SINGLE_RANGES))


@dataclass(frozen=True)
class UnitHashes:
    """The units of consecutive texts: those of text `i` are `hashes[starts[i]:starts[i + 1]]`.

    `hashes` is uint64 [units], `starts` is int64 [texts + 1].
    """

    hashes: UInt64
    starts: npt.NDArray[np.int64]

    def ngrams(self, units: int) -> UInt64:
        """The hash of the n-gram of `units` units that begins at each unit, uint64 [units].

        Near the end of a text there begins none: the value there is meaningless (see `begins`).
        """
        hashes = self.hashes.copy()
        for distance in range(1, units):
            hashes *= COMBINE
            hashes[:-distance] += self.hashes[distance:]
        return hashes

    def begins(self, units: int) -> npt.NDArray[np.bool_]:
        """Whether an n-gram of `units` units begins at each unit, bool [units]."""
        begins = np.ones(len(self.hashes), dtype=np.bool_)
        for distance in range(1, units):
            last = self.starts[1:] - distance
            begins[last[last >= self.starts[:-1]]] = False
        return begins

    def counts(self) -> npt.NDArray[np.int64]:
        """N-grams of 1 to `MAX_UNITS` units of each text, int64 [texts]."""
        sizes = np.diff(self.starts)
        return sum(np.maximum(sizes - n, 0) for n in range(MAX_UNITS))


def hash_units(texts: Sequence[str]) -> UnitHashes:
    """The units of every text, hashed; equal units have equal hashes wherever they stand."""
    single = shingle(texts, units=1)
    return UnitHashes(single.hashes, single.starts.astype(np.int64))


def hash_ngrams(texts: Sequence[str]) -> UInt64:
    """The hashes of n-grams given as text, each what `UnitHashes.ngrams` has where it begins.

    uint64 [n-grams]. Raises ValueError for a text that is not 1 to `MAX_UNITS` units.
    """
    found = hash_units(texts)
    sizes = np.diff(found.starts)
    if len(texts) and not 1 <= sizes.min() <= sizes.max() <= MAX_UNITS:
        raise ValueError("a text that is no n-gram")
    first = found.starts[:-1]
    whole = np.zeros(len(texts), dtype=np.uint64)
    for size in range(1, MAX_UNITS + 1):
        of_size = sizes == size
        whole[of_size] = found.ngrams(size)[first[of_size]]
    return whole


def units(text: str) -> Iterator[str]:
    """The units of a text as lower-case text, as `dedup.shingles` cuts them."""
    word = ""
    for character in text.lower():
        single = bisect_right(_BORDERS, ord(character)) % 2
        part = unicodedata.category(character)[0] in "LMN"
        if part and not single:
            word += character
            continue
        if word:
            yield word
            word = ""
        if part:
            yield character
    if word:
        yield word


def ngrams(text: str) -> Iterator[str]:
    """All n-grams of a text, with repeats; only words next to each other need a space between."""
    found = list(units(text))
    for count in range(1, MAX_UNITS + 1):
        for first in range(len(found) - count + 1):
            yield _joined(found[first : first + count])


def _joined(parts: list[str]) -> str:
    text = parts[0]
    for before, part in pairwise(parts):
        text += f" {part}" if _is_word(before) and _is_word(part) else part
    return text


def _is_word(unit: str) -> bool:
    return not bisect_right(_BORDERS, ord(unit[0])) % 2
