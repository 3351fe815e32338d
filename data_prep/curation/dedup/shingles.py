"""Documents as hashes of runs of consecutive units, many documents at a time.

A unit is one Han, kana or hangul character, or a run of other letters, marks and digits; it is
compared in lower case. Punctuation, symbols and white space separate units and are no part of any.
A document is the set of its shingles (n consecutive units), so one edited Chinese character touches
n shingles, as one edited English word does.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]

DEFAULT_UNITS = 5
BATCH_CHARACTERS = 2**19
SEPARATOR, WORD, SINGLE = 0, 1, 2
SINGLE_RANGES = (
    (0x1100, 0x11FF),  # hangul jamo
    (0x3005, 0x3007),  # iteration mark, closing mark, zero
    (0x3040, 0x30FF),  # kana
    (0x3130, 0x318F),  # hangul compatibility jamo
    (0x31F0, 0x31FF),  # kana extensions
    (0x3400, 0x4DBF),  # Han extension A
    (0x4E00, 0x9FFF),  # Han
    (0xA960, 0xA97F),  # hangul jamo extended A
    (0xAC00, 0xD7FF),  # hangul syllables, jamo extended B
    (0xF900, 0xFAFF),  # Han compatibility
    (0xFF66, 0xFFDC),  # half-width kana and hangul
    (0x1AFF0, 0x1B16F),  # kana supplements
    (0x20000, 0x3FFFF),  # the planes of Han extensions
)
ASSIGNED = ((0, 0x40000), (0xE0000, 0xE1000))
"""Where Unicode has characters that are not for private use."""
CHARACTER_BASE = 0x9E3779B97F4A7C15
UNIT_BASE = 0xD6E8FEB86659FD93
MODULUS = 2**64


@dataclass(frozen=True)
class Shingles:
    """The shingles of consecutive documents: those of document `i` are `hashes[starts[i]:starts[i
    + 1]]`, in the order of the text and with repeats.

    `hashes` is uint64 [number of shingles], `starts` is uint64 [documents + 1].
    """

    hashes: UInt64
    starts: UInt64

    def of(self, document: int) -> UInt64:
        """The distinct shingles of one document, rising."""
        return np.unique(self.hashes[self.starts[document] : self.starts[document + 1]])


def shingle(texts: Sequence[str], units: int = DEFAULT_UNITS) -> Shingles:
    """Hash every run of `units` consecutive units of every text.

    A text of fewer units has one shingle, all of them; a text of none has no shingle. Equal runs
    have equal hashes wherever they stand; different ones collide with probability near 2^-64.
    """
    if units < 1:
        raise ValueError(f"a shingle of {units} units")
    hashed, first = _units(texts)
    begin, end = first[:-1], first[1:]
    begin, end = begin[end > begin], end[end > begin]
    valid = np.ones(len(hashed), dtype=np.bool_)
    for distance in range(1, units):
        last = end - distance
        valid[last[last > begin]] = False
    powers = [pow(UNIT_BASE, place, MODULUS) for place in range(units)]
    # Only a text's own units count: zeros stand for what is missing at the end of the last one.
    padded = np.concatenate([hashed, np.zeros(units - 1, dtype=np.uint64)])
    rolled = hashed.copy()
    short = end - begin < units
    short_begin, short_end = begin[short], end[short]
    short_rolled = hashed[short_begin]
    for place in range(1, units):
        power = np.uint64(powers[place])
        rolled += padded[place : place + len(hashed)] * power
        inside = short_begin + place < short_end
        short_rolled[inside] += padded[short_begin[inside] + place] * power
    rolled[short_begin] = short_rolled
    counts = np.diff(first)
    shingles = np.where(counts < units, np.minimum(counts, 1), counts - units + 1)
    starts = np.concatenate([[0], np.cumsum(shingles)]).astype(np.uint64)
    return Shingles(mixed(rolled[valid]), starts)


def batches(texts: Iterable[str], characters: int = BATCH_CHARACTERS) -> Iterator[list[str]]:
    """Consecutive texts in lists of about `characters` code points, so that arrays stay small."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text) + 1
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def jaccard(left: UInt64, right: UInt64) -> float:
    """|left & right| / |left | right| of two sets given as rising distinct values; 0 if empty."""
    if not len(left) or not len(right):
        return 0.0
    both = np.sort(np.concatenate([left, right]), kind="stable")
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / (len(both) - common)


def _units(texts: Sequence[str]) -> tuple[UInt64, npt.NDArray[np.int64]]:
    """The hashes of all units, and where those of each text begin (int64 [texts + 1]).

    The hash of a unit of code points c_0 ... c_m is sum(c_i * base^i) mod 2^64, mixed. All units
    are summed at once with powers that run through the whole batch; the power of a unit's own
    place is then taken back by its inverse.
    """
    lowered = [text.lower() for text in texts]
    lengths = np.fromiter(map(len, lowered), dtype=np.int64, count=len(lowered))
    joined = "\n".join(lowered).encode("utf-32-le", "surrogatepass")
    points = np.frombuffer(joined, dtype="<u4")
    classes = _classes()[points]
    begins = classes == SINGLE
    words = classes == WORD
    begins[:1] |= words[:1]
    # A word begins after anything but a word: also directly after a Han character.
    begins[1:] |= words[1:] & ~words[:-1]
    places = np.flatnonzero(begins)
    text_begins = np.concatenate([[0], np.cumsum(lengths + 1)])
    first = np.searchsorted(places, text_begins)
    if not len(places):
        return np.zeros(0, dtype=np.uint64), first
    powers, inverses = _powers(1 << len(points).bit_length())
    terms = np.multiply(points, classes != SEPARATOR, dtype=np.uint64)
    terms *= powers[: len(points)]
    return mixed(np.add.reduceat(terms, places) * inverses[places]), first


def mixed(values: UInt64) -> UInt64:
    """The finaliser of MurmurHash3 (Appleby), a bijection of 64 bits. Changes `values` in place."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values ^= values >> np.uint64(33)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(33)
    return values


@cache
def _powers(count: int) -> tuple[UInt64, UInt64]:
    """base^i and base^-i mod 2^64 for i below `count`."""
    inverse = pow(CHARACTER_BASE, -1, MODULUS)
    powers, inverses = np.ones((2, count), dtype=np.uint64)
    powers[1:], inverses[1:] = CHARACTER_BASE, inverse
    return np.multiply.accumulate(powers), np.multiply.accumulate(inverses)


@cache
def _classes() -> npt.NDArray[np.uint8]:
    """For every code point: no unit (0), part of a word (1), a unit by itself (2)."""
    table = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    for first, stop in ASSIGNED:
        characters = map(chr, range(first, stop))
        table[first:stop] = [unicodedata.category(each)[0] in "LMN" for each in characters]
    for first, last in SINGLE_RANGES:
        table[first : last + 1] *= SINGLE
    return table
