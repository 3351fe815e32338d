"""What becomes of texts in traditional characters.

The characters that only one of the two scripts has, and the conversion, are OpenCC's (BYVoid et
al., https://github.com/BYVoid/OpenCC), the tables of its configurations `t2s` and `s2t`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
from opencc import OpenCC

from data_prep.curation.code_points import Analysed, Classes, code_points
from data_prep.curation.edits import Edited

NEITHER, SIMPLIFIED, TRADITIONAL = 0, 1, 2
HAN_BLOCKS = ((0x3400, 0x4DC0), (0x4E00, 0xA000))
"""The blocks in which both scripts are written; rarer characters tell nothing."""
TABLE_SIZE = 0xA000


class Policy(StrEnum):
    """What to do with a text in traditional characters."""

    KEEP = "keep"
    DROP = "drop"
    CONVERT = "convert"


@dataclass(frozen=True)
class ScriptPolicy:
    """A text is traditional when most characters that tell the two scripts apart are.

    One-to-many pairs (后 is also a traditional character) are outvoted by the rest of a text.
    """

    policy: Policy = Policy.KEEP
    min_traditional: float = 0.5
    """Least share of traditional characters among those that belong to one script only."""

    def traditional(self, analysed: Analysed) -> float:
        """The share of traditional characters among those of one script; 0 where there is none."""
        codes = analysed.codes
        scripts = np.bincount(_scripts().take(codes, mode="clip"), minlength=3)
        told = int(scripts[SIMPLIFIED] + scripts[TRADITIONAL])
        return int(scripts[TRADITIONAL]) / told if told else 0.0

    def reason(self, analysed: Analysed) -> str | None:
        """`traditional_characters` for a traditional text when the policy is to drop them."""
        if self.policy is Policy.DROP and self.traditional(analysed) > self.min_traditional:
            return "traditional_characters"
        return None

    def apply(self, text: str) -> Edited:
        """The text in simplified characters when it is traditional and the policy is to convert.

        `counts` has `traditional_to_simplified`, the number of characters that changed.
        """
        if self.policy is not Policy.CONVERT:
            return Edited(text, {})
        analysed = Analysed(text)
        if self.traditional(analysed) <= self.min_traditional:
            return Edited(text, {})
        converted = _to_simplified().convert(text)
        changed = _changed(text, converted)
        return Edited(converted, {"traditional_to_simplified": changed} if changed else {})


def _changed(text: str, converted: str) -> int:
    """Places that differ; OpenCC replaces by phrases, so the length may differ by a little."""
    if len(text) == len(converted):
        return int(np.count_nonzero(code_points(text) != code_points(converted)))
    return sum(_scripts().take(code_points(text), mode="clip") == TRADITIONAL)


@cache
def _to_simplified() -> OpenCC:
    return OpenCC("t2s")


@cache
def _scripts() -> Classes:
    """The script of every code point below `TABLE_SIZE`; the last entry, for the rest, is 0."""
    characters = "\n".join(chr(code) for block in HAN_BLOCKS for code in range(*block))
    lines = characters.split("\n")
    simplified = _to_simplified().convert(characters).split("\n")
    traditional = OpenCC("s2t").convert(characters).split("\n")
    table = np.zeros(TABLE_SIZE, dtype=np.uint8)
    for character, as_simplified, as_traditional in zip(
        lines, simplified, traditional, strict=True
    ):
        if character != as_simplified:
            table[ord(character)] = TRADITIONAL
        elif character != as_traditional:
            table[ord(character)] = SIMPLIFIED
    return table
