"""Measures of lines that the rules of both languages share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_prep.curation.code_points import Analysed, CharacterClass, Classes

Mask = npt.NDArray[np.bool_]

BULLETS = tuple("•●○■□◆◇▪▲△★☆※-*·")
ELLIPSES = ("…", "...", "。。。")
TERMINAL = "。！？；：….!?;:”’\"')）」』】"


def is_table_row(analysed: Analysed) -> Mask:
    """Lines of a table of numbers: three digits or more, and at most two letters to a digit.

    Such lines are judged by no rule on prose: statements of accounts are wanted. bool [lines].
    """
    digits = analysed.line_counts[:, CharacterClass.DIGIT]
    mask: Mask = (digits >= 3) & (letters_of_lines(analysed) <= 2 * digits)
    return mask


def letters_of_lines(analysed: Analysed) -> npt.NDArray[np.int64]:
    """Letters of all scripts in each line, int64 [lines]."""
    counts = analysed.line_counts
    letters: npt.NDArray[np.int64] = counts[:, CharacterClass.HAN : CharacterClass.DIGIT].sum(1)
    return letters


def ends_with(analysed: Analysed, marks: Classes) -> Mask:
    """Lines whose last character is marked in `marks` (uint8 [code points]). bool [lines].

    Blanks at the end of a line hide its mark: texts are normalised first.
    """
    ends = analysed.line_ends
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    filled = ends > starts
    last = np.zeros(len(ends), dtype=np.uint32)
    last[filled] = analysed.codes[ends[filled] - 1]
    mask: Mask = marks.take(last, mode="clip") > 0
    return mask


def mark_table(characters: str) -> Classes:
    """A table for `ends_with`: 1 at every given character, which are below U+FFFF."""
    table = np.zeros(0x10000, dtype=np.uint8)
    table[[ord(character) for character in characters]] = 1
    return table


def bullet_fraction(lines: list[str]) -> float:
    """The share of the lines that hold something which begin with a bullet."""
    filled = [line for line in lines if line]
    return sum(line.lstrip(" ").startswith(BULLETS) for line in filled) / max(len(filled), 1)


def ellipsis_fraction(lines: list[str]) -> float:
    """The share of the lines that hold something which end with an ellipsis."""
    filled = [line for line in lines if line]
    return sum(line.endswith(ELLIPSES) for line in filled) / max(len(filled), 1)
