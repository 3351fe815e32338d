"""Texts that say the same again: repeated lines, paragraphs and runs of units.

A unit is one Han, kana or hangul character, or a run of other letters and digits. The measures are
those of Gopher (Rae et al. 2021, appendix A1.1), counted in units instead of characters: the share
of a text that the most frequent n-gram takes, and the share that lies in n-grams seen before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from data_prep.curation.code_points import Analysed, CharacterClass

UInt64 = npt.NDArray[np.uint64]

SINGLES = (CharacterClass.HAN, CharacterClass.KANA_HANGUL)
WORDS = (CharacterClass.LATIN, CharacterClass.LETTER, CharacterClass.DIGIT)
SEPARATOR, WORD, SINGLE = 0, 1, 2
ROLE = np.zeros(16, dtype=np.uint8)
ROLE[list(WORDS)] = WORD
ROLE[list(SINGLES)] = SINGLE
NGRAM_BASE = 0xD6E8FEB86659FD93
PLACES = np.random.default_rng(0).integers(0, 2**64, size=64, dtype=np.uint64) | np.uint64(1)
"""A factor for each place in a word; those of a longer word come round again."""


@dataclass(frozen=True)
class Repetition:
    """Limits on repetition; the defaults are Gopher's for English."""

    max_duplicate_lines: float = 0.30
    """Most lines that stood before, as a share of the lines counted."""
    max_duplicate_line_characters: float = 0.20
    """Most characters in such lines."""
    max_duplicate_paragraphs: float = 0.30
    max_duplicate_paragraph_characters: float = 0.20
    min_line_characters: int = 1
    """Shorter lines and paragraphs are not counted: tables and forms repeat short labels."""
    max_top: tuple[tuple[int, float], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    """(n, share): most units the most frequent n-gram may take. n rises."""
    max_repeated: tuple[tuple[int, float], ...] = (
        (5, 0.15),
        (6, 0.14),
        (7, 0.13),
        (8, 0.12),
        (9, 0.11),
        (10, 0.10),
    )
    """(n, share): most units in n-grams that stood before. n rises."""
    min_units: int = 50
    """Shorter texts are not judged by n-grams."""

    def reason(self, analysed: Analysed) -> str | None:
        """`duplicate_lines`, `duplicate_paragraphs`, `top_ngram` or `repeated_ngrams`."""
        text = analysed.text
        if self._repeats(
            analysed.lines, self.max_duplicate_lines, self.max_duplicate_line_characters
        ):
            return "duplicate_lines"
        if "\n\n" in text and self._repeats(
            text.split("\n\n"),
            self.max_duplicate_paragraphs,
            self.max_duplicate_paragraph_characters,
        ):
            return "duplicate_paragraphs"
        units = unit_hashes(analysed)
        if len(units) < self.min_units:
            return None
        if self._top_ngram(units):
            return "top_ngram"
        return "repeated_ngrams" if self._repeated_ngrams(units) else None

    def _repeats(self, pieces: list[str], max_pieces: float, max_characters: float) -> bool:
        counted = [piece for piece in pieces if len(piece) >= self.min_line_characters]
        distinct = set(counted)
        repeats = len(counted) - len(distinct)
        if not repeats:
            return False
        characters = sum(map(len, counted))
        repeated = characters - sum(map(len, distinct))
        return repeats > max_pieces * len(counted) or repeated > max_characters * characters

    def _top_ngram(self, units: UInt64) -> bool:
        too_often = [int(limit * len(units) / n) + 1 for n, limit in self.max_top]
        for index, (n, _) in enumerate(self.max_top):
            rising = _sorted(ngrams(units, n))
            if _occurs(rising, too_often[index]):
                return True
            # A longer n-gram is no more frequent than the shorter one inside it.
            if not _occurs(rising, min(too_often[index:])):
                return False
        return False

    def _repeated_ngrams(self, units: UInt64) -> bool:
        for index, (n, limit) in enumerate(self.max_repeated):
            share = repeated_fraction(units, n, limit)
            if share > limit:
                return True
            # What a longer repeated n-gram covers, the shorter ones inside it cover too.
            if all(share <= bound for _, bound in self.max_repeated[index + 1 :]):
                return False
        return False


@dataclass(frozen=True)
class RepetitionZh(Repetition):
    """Limits in Han characters. Reports and statements of accounts repeat names, headings and whole
    clauses, so only a text half of which was there before is dropped (13-grams: Chen et al. 2023,
    ChineseWebText; 10-grams: Data-Juicer, Chen et al. 2023).
    """

    min_line_characters: int = 10
    max_top: tuple[tuple[int, float], ...] = ((2, 0.16), (3, 0.15), (4, 0.15))
    max_repeated: tuple[tuple[int, float], ...] = ((10, 0.60), (13, 0.50))


def unit_hashes(analysed: Analysed) -> UInt64:
    """A hash of every unit, uint64 [units], in the order of the text."""
    roles = ROLE.take(analysed.classes)
    begins = roles == SINGLE
    words = roles == WORD
    begins[:1] |= words[:1]
    # A word begins after anything but a word: also directly after a Han character.
    begins[1:] |= words[1:] & ~words[:-1]
    places = np.flatnonzero(begins)
    if not len(places):
        return np.zeros(0, dtype=np.uint64)
    first = places[0]
    sizes = np.empty_like(places)
    sizes[:-1], sizes[-1] = places[1:] - places[:-1], len(roles) - places[-1]
    inside = np.arange(first, len(roles))
    inside -= np.repeat(places, sizes)
    inside &= len(PLACES) - 1
    terms = PLACES.take(inside)
    terms *= analysed.codes[first:]
    terms *= roles[first:] != SEPARATOR
    return np.add.reduceat(terms, places - first)


def ngrams(units: UInt64, n: int) -> UInt64:
    """A hash of every run of `n` units, uint64 [units - n + 1]; none where there are fewer."""
    if len(units) < n:
        return np.zeros(0, dtype=np.uint64)
    if n == 1:
        return units
    # From two halves, so that a run of n units takes about log2(n) steps.
    half = ngrams(units, n // 2)
    hashes = half[: len(units) - n + 1] * _base(n // 2)
    hashes += half[n // 2 :][: len(hashes)]
    if n % 2:
        hashes *= _base(1)
        hashes += units[n - 1 :]
    return hashes


@cache
def _base(exponent: int) -> np.uint64:
    return np.uint64(pow(NGRAM_BASE, exponent, 2**64))


def repeated_fraction(units: UInt64, n: int, enough: float = 0.0) -> float:
    """The share of units inside n-grams that stood before, the first of each not counted.

    When an upper bound on it is no more than `enough`, that bound is returned: it is cheaper.
    """
    hashes = ngrams(units, n)
    if not len(hashes):
        return 0.0
    halves = _sorted(hashes)
    repeats = int(np.count_nonzero(halves[1:] == halves[:-1]))
    bound = repeats * n / len(units)
    if bound <= enough:
        return bound
    order = np.argsort(hashes, kind="stable")
    rising = hashes[order]
    again = order[1:][rising[1:] == rising[:-1]]
    edges = np.zeros(len(units) + 1, dtype=np.int64)
    edges[again] += 1
    edges[again + n] -= 1
    return int(np.count_nonzero(np.cumsum(edges) > 0)) / len(units)


def _sorted(hashes: UInt64) -> npt.NDArray[np.uint32]:
    """The high halves of hashes in rising order, which is faster than whole ones. Equal halves of
    different hashes are so rare that they do not matter to a count.
    """
    return np.sort((hashes >> np.uint64(32)).astype(np.uint32))


def _occurs(rising: npt.NDArray[np.uint32], times: int) -> bool:
    """Whether a value stands at least `times` (1 or more) times in the sorted array."""
    if times > len(rising):
        return False
    return bool((rising[times - 1 :] == rising[: len(rising) - times + 1]).any())
