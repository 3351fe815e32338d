"""One spelling of every text: composed characters, plain blanks, half-width letters and digits.

Full-width forms are folded one by one and not by NFKC, which would also turn Chinese punctuation
into ASCII, circled numbers into digits and superscripts into plain numbers.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np

from data_prep.curation.code_points import Batch, Classes
from data_prep.curation.edits import Edited
from data_prep.curation.lines import Mask

PLAIN, ODD, BLANK, NEWLINE = range(4)
FULL_WIDTH = 0xFEE0
"""What lies between a full-width letter or digit and its ASCII form."""
WIDE = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]+")
HALF = {
    code: code - FULL_WIDTH
    for first, last in ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))
    for code in range(first, last + 1)
}
# Begins with a set of characters, to which the engine skips.
LINE_ENDS = re.compile("[\r\x0b\x0c\x85\u2028\u2029](?:(?<=\r)\n)?")
# Joiners (U+200C, U+200D) stay: Persian, Indic scripts and emoji need them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064"
    "\u2066-\u206f\ufeff\ufff9-\ufffb]+"
)
ODD_BLANKS = re.compile("[\t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
# Tried once per run of blanks: without the look behind, its cost would be the square of the run.
TRAILING_BLANKS = re.compile("(?<! ) +$", re.MULTILINE)
BLANK_RUNS = re.compile("(?<=[^ \n]) {2,}")
EMPTY_LINES = re.compile("\n{3,}")
# What none of the patterns above can change is passed over by one search.
SUSPECT = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\xa0\xad\u1680\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u206f"
    "\u3000\ufeff\ufff9-\ufffb\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]|  | \n|\n\n\n"
)


@dataclass(frozen=True)
class Normalise:
    """Which differences of spelling are removed. Every choice is idempotent, and so is their sum.

    Always done: carriage returns and other line ends become newlines; byte order marks, control
    characters, zero-width and direction marks go; tabs and the blanks of typesetting, the
    ideographic one included, become spaces; blanks at the end of a line and newlines at both ends
    of the text go.
    """

    compose: bool = True
    """Unicode NFC: a letter and its accent become one character where there is one."""
    half_width: bool = True
    """Full-width ASCII letters and digits become half-width; full-width punctuation stays."""
    collapse_blanks: bool = True
    """Runs of blanks inside a line become one, runs of empty lines become one. An indent stays."""

    def may_change(self, batch: Batch) -> Mask:
        """Texts that `apply` may change; the others it would leave as they are. bool [texts]."""
        kinds = _kinds().take(batch.codes, mode="clip")
        blanks = np.flatnonzero(kinds == BLANK)
        blanks = blanks[kinds[blanks + 1] >= BLANK]
        newlines = np.flatnonzero(kinds == NEWLINE)[:-2]
        empty = newlines[(kinds[newlines + 1] == NEWLINE) & (kinds[newlines + 2] == NEWLINE)]
        firsts, lasts = batch.starts[:-1], batch.starts[1:] - 2
        # Before the newline behind an empty text stands that of the text before it.
        mask: Mask = (kinds[firsts] == NEWLINE) | (kinds.take(lasts, mode="wrap") >= BLANK)
        for places in (np.flatnonzero(kinds == ODD), blanks, empty):
            mask |= batch.at(places) > 0
        return mask

    def apply(self, text: str) -> Edited:
        """The normalised text. `counts`: places of `half_width`, `line_ends`, `invisible` and
        `blanks`, and `composed` once for a text that was not in NFC.
        """
        counts: dict[str, int] = {}
        if SUSPECT.search(text):
            text = self._respell(text, counts)
        # Last, because an accent may have followed a full-width letter or an invisible character.
        if self.compose and not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
            counts["composed"] = 1
        return Edited(text.rstrip(" \n").lstrip("\n"), counts)

    def _respell(self, text: str, counts: dict[str, int]) -> str:
        text = _substitute(LINE_ENDS, "\n", text, "line_ends", counts)
        text = _substitute(INVISIBLE, "", text, "invisible", counts)
        if self.half_width:
            text, places = WIDE.subn(lambda match: match[0].translate(HALF), text)
            if places:
                counts["half_width"] = places
        text = _substitute(ODD_BLANKS, " ", text, "blanks", counts)
        # What a pattern needs is looked for first, because that is much faster.
        if " \n" in text or text.endswith(" "):
            text = _substitute(TRAILING_BLANKS, "", text, "blanks", counts)
        if self.collapse_blanks and "  " in text:
            text = _substitute(BLANK_RUNS, " ", text, "blanks", counts)
        if self.collapse_blanks and "\n\n\n" in text:
            text = _substitute(EMPTY_LINES, "\n\n", text, "blanks", counts)
        return text


def _substitute(
    pattern: re.Pattern[str], replacement: str, text: str, kind: str, counts: dict[str, int]
) -> str:
    text, places = pattern.subn(replacement, text)
    if places:
        counts[kind] = counts.get(kind, 0) + places
    return text


@cache
def _kinds() -> Classes:
    """Whether a code point below U+FFFF may need a change: `ODD`, and the last entry for the rest,
    those that `SUSPECT` or Unicode's composition may, whatever stands beside them.
    """
    table = np.zeros(0x10000, dtype=np.uint8)
    table[:-1] = [_is_odd(chr(code)) for code in range(0xFFFF)]
    table[-1] = ODD
    table[ord(" ")], table[ord("\n")] = BLANK, NEWLINE
    return table


def _is_odd(character: str) -> bool:
    """Marks and the later parts of a hangul syllable may join what stands before."""
    return (
        SUSPECT.search(character) is not None
        or unicodedata.category(character)[0] == "M"
        or "\u1100" <= character <= "\u11ff"
        or not unicodedata.is_normalized("NFC", character)
    )
