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

from data_prep.curation.code_points import Batch, CharacterClass, Counts
from data_prep.curation.lines import Mask

UInt64 = npt.NDArray[np.uint64]

SINGLES = (CharacterClass.HAN, CharacterClass.KANA_HANGUL)
WORDS = (CharacterClass.LATIN, CharacterClass.LETTER, CharacterClass.DIGIT)
SEPARATOR, WORD, SINGLE = 0, 1, 2
ROLE = np.zeros(16, dtype=np.uint8)
ROLE[list(WORDS)] = WORD
ROLE[list(SINGLES)] = SINGLE
NGRAM_BASE = 0xD6E8FEB86659FD93
SLOT_FACTOR = 0x9E3779B97F4A7C15
SLOTS = 256
SLOT_SHIFT = 56
"""From a hash of 64 bits to one of `SLOTS`."""
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

    def reason(self, batch: Batch) -> list[str | None]:
        """Of each text `duplicate_lines`, `duplicate_paragraphs`, `top_ngram`, `repeated_ngrams` or
        None.
        """
        reasons = [self._pieces(text) for text in batch.texts]
        units, first = unit_hashes(batch)
        counts = np.diff(first)
        judged = (counts >= self.min_units) & (counts > 0)
        judged &= np.fromiter((reason is None for reason in reasons), np.bool_, len(reasons))
        for number in np.flatnonzero(judged & self._may_have_top(units, first)).tolist():
            if self._top_ngram(units[first[number] : first[number + 1]]):
                reasons[number], judged[number] = "top_ngram", False
        for number in np.flatnonzero(judged & self._may_repeat(units, first)).tolist():
            if self._repeated_ngrams(units[first[number] : first[number + 1]]):
                reasons[number] = "repeated_ngrams"
        return reasons

    def _pieces(self, text: str) -> str | None:
        """Judge lines and paragraphs."""
        if self._repeats(
            text.split("\n"), self.max_duplicate_lines, self.max_duplicate_line_characters
        ):
            return "duplicate_lines"
        if "\n\n" in text and self._repeats(
            text.split("\n\n"),
            self.max_duplicate_paragraphs,
            self.max_duplicate_paragraph_characters,
        ):
            return "duplicate_paragraphs"
        return None

    def _may_have_top(self, units: UInt64, first: Counts) -> Mask:
        """Texts in which many n-grams of the shortest kind fall together, bool [texts]: without
        them no n-gram is too frequent, because a longer one is no more frequent than what is in it.
        """
        counts = np.diff(first)
        shortest = min((n for n, _ in self.max_top), default=1)
        owners = np.repeat(np.arange(len(counts)) * SLOTS, counts)
        hashes = ngrams(units, shortest) >> np.uint64(SLOT_SHIFT)
        # An n-gram that reaches into the next text only makes a count larger.
        slots = owners[: len(hashes)]
        slots += hashes.view(np.int64)
        filled = np.bincount(slots, minlength=len(counts) * SLOTS)
        most = filled.reshape(len(counts), SLOTS).max(axis=1)
        too_often = [(limit * counts / n).astype(np.int64) + 1 for n, limit in self.max_top]
        return np.any([most >= times for times in too_often], axis=0)

    def _may_repeat(self, units: UInt64, first: Counts) -> Mask:
        """Texts with enough repeats of n-grams of the shortest kind to reach a limit, bool [texts].

        What a longer repeated n-gram covers, the shorter ones inside it cover too.
        """
        counts = np.diff(first)
        shortest = min((n for n, _ in self.max_repeated), default=1)
        hashes = ngrams(units, shortest)
        owners = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)[: len(hashes)]
        owners *= np.uint64(NGRAM_BASE)
        hashes = hashes + owners
        repeats = np.diff(np.searchsorted(repeated_places(hashes), first))
        least = min((limit for _, limit in self.max_repeated), default=1.0)
        mask: Mask = repeats * shortest > least * counts
        return mask

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


def unit_hashes(batch: Batch) -> tuple[UInt64, Counts]:
    """A hash of every unit of all texts in their order, uint64 [units], and where those of each
    text begin, with the end of all, int64 [texts + 1].
    """
    roles = ROLE.take(batch.classes)
    begins = roles == SINGLE
    words = np.flatnonzero(roles == WORD)
    # A word begins after anything but a word: also directly after a Han character.
    heads = np.flatnonzero(np.diff(words, prepend=-2) > 1)
    begins[words[heads]] = True
    places = np.flatnonzero(begins)
    hashes = batch.codes[places] * PLACES[0]
    if len(heads):
        inside = words - np.repeat(words[heads], np.diff(heads, append=len(words)))
        inside &= len(PLACES) - 1
        terms = PLACES.take(inside)
        terms *= batch.codes[words]
        hashes[roles[places] == WORD] = np.add.reduceat(terms, heads)
    return hashes, np.searchsorted(places, batch.starts)


def repeated_places(hashes: UInt64) -> Counts:
    """Where a hash stands that stood before, int64 [repeats], rising."""
    bits = len(hashes).bit_length() + 1
    slots = np.empty(1 << bits, dtype=np.int32)
    waiting = np.arange(len(hashes), dtype=np.int32)
    repeats = []
    mixed = hashes
    while len(waiting):
        mixed = mixed * np.uint64(SLOT_FACTOR)
        slot = (mixed >> np.uint64(64 - bits)).view(np.int64)
        # Of those that want a slot the first one, written last, gets it: numpy assigns to repeated
        # indices in order (its quickstart, "Indexing with arrays of indices").
        slots[slot[::-1]] = waiting[::-1]
        holders = slots[slot]
        lost = np.flatnonzero(holders != waiting)
        equal = hashes[waiting[lost]] == hashes[holders[lost]]
        repeats.append(waiting[lost[equal]])
        lost = lost[~equal]
        waiting, mixed = waiting[lost], mixed[lost] ^ (mixed[lost] >> np.uint64(29))
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int32), *repeats])).astype(np.int64)


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
