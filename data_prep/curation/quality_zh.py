"""Rules on the form of Chinese texts.

No rule needs word segmentation, and none grows stricter with length: there is no longest text, and
variety is measured by entropy and not by distinct characters per character. Lines of tables of
numbers are set aside, so that an annual report is judged by its prose and a statement of accounts
by nothing but its labels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from data_prep.curation.code_points import Analysed, CharacterClass
from data_prep.curation.lines import (
    TERMINAL,
    Mask,
    bullet_fraction,
    ellipsis_fraction,
    ends_with,
    is_table_row,
    mark_table,
)
from data_prep.curation.spam import spam_reason

FUNCTION_CHARACTERS = "的了是在和有不为與与及以之其也于於对對为為就"
ENDINGS = mark_table(TERMINAL)
VERSE_ENDINGS = mark_table(TERMINAL + "，、,")
MOJIBAKE = re.compile("锛|銆|鐨|涓€|锟斤|�")
"""UTF-8 read as GBK: the full-width comma, the full stop, 的, 一; and characters lost for good."""
LENTICULAR = re.compile("【[^【】\n]*】")
ENTROPY_SAMPLE = 20_000


@dataclass(frozen=True)
class QualityZh:
    """Thresholds on normalised Chinese text. Shares are of characters that are not white space."""

    min_characters: int = 30
    """Fewest letters and digits. A headline with one sentence of news has about fifty."""
    min_letters: float = 0.05
    """Least share of letters: even a table of numbers has labels."""
    min_prose_letters: float = 0.5
    """Least share of letters outside the rows of tables."""
    max_symbols: float = 0.1
    """Most symbols outside ASCII: emoji, box drawing, private use."""
    max_mojibake: float = 0.005
    """Most characters that come from a wrong decoding."""
    min_entropy: float = 3.0
    """Least entropy of Han characters in nats (MAP-CC), where there are `min_judged` of them."""
    min_judged: int = 100
    """Han characters in prose lines below which prose is not judged by its words and marks."""
    prose_line: int = 20
    """Han characters from which on a line is prose and should end like a sentence."""
    min_finished_lines: float = 0.1
    """Least share of prose lines that end with a mark, where there are `min_prose_lines`."""
    min_prose_lines: int = 5
    min_marks: float = 0.01
    """Fewest marks per Han character in prose lines."""
    min_function_characters: int = 2
    """Fewest different characters of grammar (的, 了, 是, ...)."""
    max_short_lines: float = 0.7
    """Most Han characters in short lines without a mark at the end: menus and lists of links. Only
    where there are `min_lines` such lines."""
    min_lines: int = 8
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    max_lenticular: float = 0.2
    """Most characters inside 【】, the brackets of advertisements."""
    max_spam: float = 0.01
    """Most characters in words of one trade of spam, when three different ones occur."""

    def reason(self, analysed: Analysed) -> str | None:
        """`zh_too_short`, `zh_few_letters`, `zh_symbols`, `zh_mojibake`, `zh_brackets`, `spam_*`
        (`spam.TRADES`), `zh_bullet_lines`, `zh_ellipsis_lines`, `zh_short_lines`,
        `zh_unfinished_lines`, `zh_no_marks`, `zh_no_function_words` or `zh_low_entropy`.
        """
        reason = self._characters(analysed) or spam_reason(analysed.text, self.max_spam)
        if reason is not None:
            return reason
        rows = is_table_row(analysed)
        return self._lines(analysed, rows) or self._prose(analysed, rows)

    def _characters(self, analysed: Analysed) -> str | None:
        text, visible = analysed.text, analysed.visible
        if analysed.letters + analysed.count(CharacterClass.DIGIT) < self.min_characters:
            return "zh_too_short"
        if analysed.letters < self.min_letters * visible:
            return "zh_few_letters"
        if analysed.count(CharacterClass.OTHER) > self.max_symbols * visible:
            return "zh_symbols"
        if sum(map(len, MOJIBAKE.findall(text))) > self.max_mojibake * visible:
            return "zh_mojibake"
        if "【" in text:
            inside = sum(map(len, LENTICULAR.findall(text)))
            if inside > self.max_lenticular * visible:
                return "zh_brackets"
        return None

    def _lines(self, analysed: Analysed, rows: Mask) -> str | None:
        counts = analysed.line_counts
        if bullet_fraction(analysed.lines) > self.max_bullet_lines:
            return "zh_bullet_lines"
        if ellipsis_fraction(analysed.lines) > self.max_ellipsis_lines:
            return "zh_ellipsis_lines"
        outside = counts[~rows].sum(axis=0)
        letters = int(outside[CharacterClass.HAN : CharacterClass.DIGIT].sum())
        visible = int(outside[: CharacterClass.SPACE].sum())
        if letters < self.min_prose_letters * visible:
            return "zh_few_letters"
        return "zh_short_lines" if self._is_menu(analysed, rows) else None

    def _is_menu(self, analysed: Analysed, rows: Mask) -> bool:
        # Statements taken from a PDF file have their labels in lines of their own.
        if analysed.count(CharacterClass.DIGIT) > analysed.letters:
            return False
        han = analysed.line_counts[:, CharacterClass.HAN]
        short = (han > 0) & (han < self.prose_line) & ~rows & ~ends_with(analysed, VERSE_ENDINGS)
        if int(np.count_nonzero(short)) < self.min_lines:
            return False
        return int(han[short].sum()) > self.max_short_lines * int(han.sum())

    def _prose(self, analysed: Analysed, rows: Mask) -> str | None:
        counts = analysed.line_counts
        han = counts[:, CharacterClass.HAN]
        prose = (han >= self.prose_line) & ~rows
        lines, letters = int(np.count_nonzero(prose)), int(han[prose].sum())
        if lines >= self.min_prose_lines:
            finished = int(np.count_nonzero(ends_with(analysed, ENDINGS) & prose))
            if finished < self.min_finished_lines * lines:
                return "zh_unfinished_lines"
        if letters < self.min_judged:
            return None
        marks = counts[prose, CharacterClass.CJK_PUNCTUATION : CharacterClass.SPACE]
        if int(marks.sum()) < self.min_marks * letters:
            return "zh_no_marks"
        found = sum(character in analysed.text for character in FUNCTION_CHARACTERS)
        if found < self.min_function_characters:
            return "zh_no_function_words"
        return "zh_low_entropy" if self._has_low_entropy(analysed) else None

    def _has_low_entropy(self, analysed: Analysed) -> bool:
        """Whether Han characters at the start of the text vary too little."""
        codes = analysed.codes[:ENTROPY_SAMPLE]
        han = np.sort(codes[analysed.classes[:ENTROPY_SAMPLE] == CharacterClass.HAN])
        # Entropy is at least the negative logarithm of the largest share, which is found faster.
        many = int(len(han) * math.exp(-self.min_entropy))
        if not (han[many:] == han[: len(han) - many]).any():
            return False
        starts = np.flatnonzero(np.concatenate([[True], han[1:] != han[:-1], [True]]))
        frequencies = np.diff(starts)
        entropy = np.log(len(han)) - frequencies @ np.log(frequencies) / len(han)
        return bool(entropy < self.min_entropy)
