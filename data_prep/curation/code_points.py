"""Texts as arrays of code points and of their classes, the common ground of all rules."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

CodePoints = npt.NDArray[np.uint32]
Classes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

CODE_POINTS = 0x110000
FIRST_HAN_PLANE = 0x20000
"""From here on no table is asked: two planes of Han characters, then nothing a text should have."""
LAST_HAN_PLANE_END = 0x40000
KANA_AND_HANGUL = (
    (0x1100, 0x11FF),
    (0x3040, 0x30FF),
    (0x3130, 0x318F),
    (0x31F0, 0x31FF),
    (0xA960, 0xA97F),
    (0xAC00, 0xD7FF),
    (0xFF66, 0xFFDC),
    (0x1AFF0, 0x1B16F),
)
HAN = ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
CJK_PUNCTUATION = ((0x3001, 0x3004), (0x3008, 0x303F), (0xFE30, 0xFE4F), (0xFF01, 0xFF65))
CLASS_SLOTS = 16
"""Columns of a table of counts: more than there are classes, so that an index is a shift."""


class CharacterClass(IntEnum):
    """What a code point is to the rules. Values are columns of the tables of counts."""

    OTHER = 0
    """Symbols outside ASCII, private use, control characters, unassigned."""
    HAN = 1
    KANA_HANGUL = 2
    LATIN = 3
    LETTER = 4
    """Letters and combining marks of any other script."""
    DIGIT = 5
    CJK_PUNCTUATION = 6
    """Chinese and full-width marks. Quotation marks and dashes that English shares are not."""
    PUNCTUATION = 7
    """Every other mark, and the symbols of ASCII."""
    SPACE = 8
    NEWLINE = 9


CLASS_OF_CATEGORY = {
    "L": CharacterClass.LETTER,
    "M": CharacterClass.LETTER,
    "N": CharacterClass.DIGIT,
    "P": CharacterClass.PUNCTUATION,
}
"""The class by the first letter of Unicode's general category."""


def code_points(text: str) -> CodePoints:
    """The code points of a text, uint32 [characters], read only. Half surrogate pairs are kept."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def text_of(codes: CodePoints) -> str:
    """The text of an array of code points: the inverse of `code_points`."""
    return codes.astype("<u4", copy=False).tobytes().decode("utf-32-le", "surrogatepass")


def classify(codes: CodePoints) -> Classes:
    """The `CharacterClass` of every code point, uint8 of the shape of `codes`."""
    return class_table().take(codes)


@cache
def class_table() -> Classes:
    """The class of every code point, uint8 [0x110000]."""
    table = np.zeros(CODE_POINTS, dtype=np.uint8)
    table[:FIRST_HAN_PLANE] = [_general_class(chr(code)) for code in range(FIRST_HAN_PLANE)]
    for first, last in KANA_AND_HANGUL:
        letters = table[first : last + 1] == CharacterClass.LETTER
        table[first : last + 1][letters] = CharacterClass.KANA_HANGUL
    for first, last in HAN:
        table[first : last + 1] = CharacterClass.HAN
    table[FIRST_HAN_PLANE:LAST_HAN_PLANE_END] = CharacterClass.HAN
    for first, last in CJK_PUNCTUATION:
        marks = table[first : last + 1]
        marks[(marks == CharacterClass.PUNCTUATION) | (marks == CharacterClass.OTHER)] = (
            CharacterClass.CJK_PUNCTUATION
        )
    return table


def _general_class(character: str) -> CharacterClass:
    """The class by Unicode's general category; Latin by the character's name."""
    if character.isspace():
        return CharacterClass.NEWLINE if character == "\n" else CharacterClass.SPACE
    major = unicodedata.category(character)[0]
    if major == "L" and "LATIN" in unicodedata.name(character, ""):
        return CharacterClass.LATIN
    if major == "S" and character.isascii():
        return CharacterClass.PUNCTUATION
    return CLASS_OF_CATEGORY.get(major, CharacterClass.OTHER)


@dataclass(frozen=True)
class Batch:
    """Texts decoded once and together, for all rules that look at them. Arrays are made when first
    asked for; some take 128 bytes a line, so a batch should hold about half a million characters.

    Every text stands in the arrays with a newline behind it. A line is what stands between
    newlines; an empty text is one empty line.
    """

    texts: Sequence[str]

    @cached_property
    def codes(self) -> CodePoints:
        """Code points, uint32 [characters]: a newline behind every text."""
        return code_points("".join([f"{text}\n" for text in self.texts]))

    @cached_property
    def classes(self) -> Classes:
        """`CharacterClass` of each code point, uint8 [characters]."""
        return classify(self.codes)

    @cached_property
    def lengths(self) -> Counts:
        """Characters of each text, int64 [texts]."""
        return np.fromiter(map(len, self.texts), dtype=np.int64, count=len(self.texts))

    @cached_property
    def starts(self) -> Counts:
        """Where each text begins, and the end of all, int64 [texts + 1]."""
        starts = np.zeros(len(self.texts) + 1, dtype=np.int64)
        np.cumsum(self.lengths + 1, out=starts[1:])
        return starts

    @cached_property
    def line_ends(self) -> Counts:
        """Where the newline of each line stands, int64 [lines]."""
        return np.flatnonzero(self.codes == ord("\n"))

    @cached_property
    def line_starts(self) -> Counts:
        """Where each line begins, int64 [lines]."""
        starts = np.zeros_like(self.line_ends)
        starts[1:] = self.line_ends[:-1] + 1
        return starts

    @cached_property
    def first_lines(self) -> Counts:
        """The first line of each text, int64 [texts]."""
        return np.searchsorted(self.line_ends, self.starts[:-1])

    @cached_property
    def line_counts(self) -> Counts:
        """Characters of each class in each line, int64 [lines, CLASS_SLOTS]. A newline belongs to
        the line it ends.
        """
        ends = self.line_ends
        sizes = ends - self.line_starts + 1
        slots = np.repeat(np.arange(0, len(ends) * CLASS_SLOTS, CLASS_SLOTS), sizes)
        slots += self.classes
        cells = np.bincount(slots, minlength=len(ends) * CLASS_SLOTS)
        return cells.reshape(len(ends), CLASS_SLOTS)

    @cached_property
    def counts(self) -> Counts:
        """Characters of each class in each text, int64 [texts, CLASS_SLOTS], the newline behind it
        included.
        """
        return self.of_lines(self.line_counts)

    def of_lines(self, values: npt.NDArray[np.generic]) -> Counts:
        """The sums over the lines of each text of one value or row a line, int64 [texts, ...]."""
        sums: Counts = np.add.reduceat(values, self.first_lines, axis=0, dtype=np.int64)
        return sums

    def at(self, places: Counts) -> Counts:
        """How many of the places, which rise, stand in each text, int64 [texts]."""
        return np.diff(np.searchsorted(places, self.starts))

    @cached_property
    def letters(self) -> Counts:
        """Letters of all scripts in each text, int64 [texts]."""
        return self.counts[:, CharacterClass.HAN : CharacterClass.DIGIT].sum(axis=1)

    @cached_property
    def visible(self) -> Counts:
        """Characters of each text that are not white space, int64 [texts]."""
        return self.counts[:, : CharacterClass.SPACE].sum(axis=1)


class Beginnings:
    """Finds where one of many words may begin, by the first two characters of each."""

    def __init__(self, words: Iterable[str]) -> None:
        """`words` are of characters below U+FFFF."""
        self._firsts, self._seconds = np.zeros((2, 0x10000), dtype=np.uint64)
        self._begins = np.zeros(0x10000, dtype=np.bool_)
        for number, beginning in enumerate(sorted({word[:2] for word in words})):
            bit = np.uint64(1 << number % 64)
            self._begins[ord(beginning[0])] = True
            self._firsts[ord(beginning[0])] |= bit
            seconds = ord(beginning[1]) if len(beginning) > 1 else slice(None)
            self._seconds[seconds] |= bit

    def count(self, batch: Batch) -> Counts:
        """Places in each text where a word may begin, never fewer than do, int64 [texts]."""
        return batch.at(self.places(batch))

    def places(self, batch: Batch) -> Counts:
        """Those places in the arrays of the batch, int64 [places], rising."""
        codes = batch.codes
        places = np.flatnonzero(self._begins.take(codes, mode="clip"))
        behind = codes.take(places + 1, mode="clip")
        likely = self._firsts.take(codes[places], mode="clip") & self._seconds.take(
            behind, mode="clip"
        )
        return places[likely > 0]


def first_reasons(
    batch: Batch, found: Iterable[tuple[str, npt.NDArray[np.bool_]]]
) -> list[str | None]:
    """Of each text the first reason whose mask (bool [texts]) holds it, or None."""
    reasons: list[str | None] = [None] * len(batch.texts)
    for reason, mask in found:
        for number in np.flatnonzero(mask).tolist():
            reasons[number] = reasons[number] or reason
    return reasons
