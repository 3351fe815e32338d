"""Measures of lines that the rules of both languages share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_prep.curation.code_points import Batch, CharacterClass, Classes, Counts

Mask = npt.NDArray[np.bool_]
Fractions = npt.NDArray[np.float64]


def mark_table(characters: str) -> Classes:
    """A table for `ends_with`: 1 at every given character, which are below U+FFFF."""
    table = np.zeros(0x10000, dtype=np.uint8)
    table[[ord(character) for character in characters]] = 1
    return table


BULLETS = mark_table("•●○■□◆◇▪▲△★☆※-*·")
TERMINAL = "。！？；：….!?;:”’\"')）」』】"


def is_table_row(batch: Batch) -> Mask:
    """Lines of a table of numbers: three digits or more, and at most two letters to a digit.

    Such lines are judged by no rule on prose: statements of accounts are wanted. bool [lines].
    """
    digits = batch.line_counts[:, CharacterClass.DIGIT]
    mask: Mask = (digits >= 3) & (letters_of_lines(batch) <= 2 * digits)
    return mask


def letters_of_lines(batch: Batch) -> Counts:
    """Letters of all scripts in each line, int64 [lines]."""
    return batch.line_counts[:, CharacterClass.HAN : CharacterClass.DIGIT].sum(axis=1)


def ends_with(batch: Batch, marks: Classes) -> Mask:
    """Lines whose last character is marked in `marks` (uint8 [code points]). bool [lines].

    Blanks at the end of a line hide its mark: texts are normalised first.
    """
    # Before an empty line stands a newline, which is no mark; before the first, the last one.
    mask: Mask = marks.take(batch.codes[batch.line_ends - 1], mode="clip") > 0
    return mask


def bullet_fractions(batch: Batch) -> Fractions:
    """The share of the lines of each text that hold something which begin with a bullet, float64
    [texts]."""
    codes, firsts = batch.codes, batch.line_starts
    if (codes[firsts] == ord(" ")).any():
        filled = np.flatnonzero(codes != ord(" "))
        firsts = filled[np.searchsorted(filled, firsts)]
    return _fractions_of_filled(batch, BULLETS.take(codes[firsts], mode="clip") > 0)


def ellipsis_fractions(batch: Batch) -> Fractions:
    """The share of the lines of each text that hold something which end with an ellipsis, float64
    [texts]."""
    # Three marks in a row cannot reach over a newline into another line.
    last, second, third = (
        batch.codes.take(batch.line_ends - back, mode="wrap") for back in (1, 2, 3)
    )
    dots = ((last == ord(".")) | (last == ord("。"))) & (last == second) & (last == third)
    return _fractions_of_filled(batch, dots | (last == ord("…")))


def _fractions_of_filled(batch: Batch, lines: Mask) -> Fractions:
    filled = batch.of_lines(batch.line_ends > batch.line_starts)
    return batch.of_lines(lines) / np.maximum(filled, 1)
