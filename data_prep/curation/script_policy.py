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

from data_prep.curation.code_points import Batch, Classes, code_points, first_reasons
from data_prep.curation.edits import Edited
from data_prep.curation.lines import Fractions, Mask

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

    def traditional(self, batch: Batch) -> Fractions:
        """The share of traditional characters among those of one script in each text, 0 where there
        is none, float64 [texts].
        """
        scripts = _scripts().take(batch.codes, mode="clip")
        told = batch.at(np.flatnonzero(scripts))
        return batch.at(np.flatnonzero(scripts == TRADITIONAL)) / np.maximum(told, 1)

    def reason(self, batch: Batch) -> list[str | None]:
        """`traditional_characters` for each traditional text when the policy is to drop them."""
        if self.policy is not Policy.DROP:
            return [None] * len(batch.texts)
        found = self.traditional(batch) > self.min_traditional
        return first_reasons(batch, [("traditional_characters", found)])

    def may_change(self, batch: Batch) -> Mask:
        """Texts that `apply` may change; the others it would leave as they are. bool [texts]."""
        if self.policy is not Policy.CONVERT:
            return np.zeros(len(batch.texts), dtype=np.bool_)
        return self.traditional(batch) > self.min_traditional

    def apply(self, text: str) -> Edited:
        """The text in simplified characters when it is traditional and the policy is to convert.

        `counts` has `traditional_to_simplified`, the number of characters that changed.
        """
        if self.policy is not Policy.CONVERT:
            return Edited(text, {})
        if self.traditional(Batch([text]))[0] <= self.min_traditional:
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
