"""Rules on the form of English texts, in the kind of Gopher, C4 and FineWeb.

Sources: Rae et al. 2021 (Gopher, appendix A1.1), Raffel et al. 2020 (C4, section 2.2), Penedo et
al. 2024 (FineWeb, section 3.5). Rows of tables of numbers are set aside, so that annual reports and
statements of accounts stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from data_prep.curation.code_points import Batch, CharacterClass, first_reasons
from data_prep.curation.lines import (
    TERMINAL,
    Mask,
    bullet_fractions,
    ellipsis_fractions,
    ends_with,
    is_table_row,
    letters_of_lines,
    mark_table,
)

ENDINGS = mark_table(TERMINAL)
FUNCTION_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
LETTERS = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class QualityEn:
    """Thresholds on normalised English text. Words are what stands between blanks."""

    min_words: int = 30
    """Fewest words. Gopher asks for 50; short news has fewer."""
    min_word_length: float = 3.0
    max_word_length: float = 10.0
    """Mean characters per word, of words that hold a letter."""
    max_symbol_words: float = 0.1
    """Most number signs and ellipses per word."""
    min_letter_words: float = 0.8
    """Least share of words outside the rows of tables that hold a letter."""
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_function_words: int = 2
    """Fewest different words of: the, be, to, of, and, that, have, with."""
    max_braces: float = 0.02
    """Most curly brackets per word: programs. C4 drops a page for one."""
    min_finished_lines: float = 0.12
    """Least share of lines that end with a mark, of lines outside tables (FineWeb)."""
    short_line: int = 30
    max_short_lines: float = 0.67
    """Most lines outside tables of at most `short_line` letters (FineWeb)."""
    min_lines: int = 8
    """Lines outside tables from which on the two rules on lines are asked."""

    def reason(self, batch: Batch) -> list[str | None]:
        """Of each text: `en_too_short`, `en_word_length`, `en_few_letters`, `en_no_function_words`,
        `en_placeholder_text`, `en_symbols`, `en_program`, `en_bullet_lines`, `en_ellipsis_lines`,
        `en_unfinished_lines`, `en_short_lines` or None.
        """
        lines = first_reasons(batch, self._lines(batch))
        return [self._words(text) or line for text, line in zip(batch.texts, lines, strict=True)]

    def _words(self, text: str) -> str | None:
        words = text.split()
        if len(words) < self.min_words:
            return "en_too_short"
        lettered = [word for word in words if LETTERS.search(word)]
        mean = sum(map(len, lettered)) / max(len(lettered), 1)
        if not self.min_word_length <= mean <= self.max_word_length:
            return "en_word_length"
        if len(lettered) < self.min_letter_words * len(words) and self._few_letters(text):
            return "en_few_letters"
        if len(FUNCTION_WORDS.intersection(text.lower().split())) < self.min_function_words:
            return "en_no_function_words"
        return self._marks(text, len(words))

    def _marks(self, text: str, words: int) -> str | None:
        if "lorem ipsum" in text or "Lorem ipsum" in text:
            return "en_placeholder_text"
        if text.count("#") + text.count("...") + text.count("…") > self.max_symbol_words * words:
            return "en_symbols"
        if text.count("{") + text.count("}") > self.max_braces * words:
            return "en_program"
        return None

    def _few_letters(self, text: str) -> bool:
        rows = is_table_row(Batch([text])).tolist()
        prose = [line for line, row in zip(text.split("\n"), rows, strict=True) if not row]
        words = [word for line in prose for word in line.split()]
        lettered = sum(LETTERS.search(word) is not None for word in words)
        return lettered < self.min_letter_words * len(words)

    def _lines(self, batch: Batch) -> Iterator[tuple[str, Mask]]:
        yield "en_bullet_lines", bullet_fractions(batch) > self.max_bullet_lines
        yield "en_ellipsis_lines", ellipsis_fractions(batch) > self.max_ellipsis_lines
        letters = letters_of_lines(batch)
        prose = (letters > 0) & ~is_table_row(batch)
        lines = batch.of_lines(prose)
        judged = (lines >= self.min_lines) & (
            batch.counts[:, CharacterClass.DIGIT] <= batch.letters
        )
        finished = batch.of_lines(ends_with(batch, ENDINGS) & prose)
        yield "en_unfinished_lines", judged & (finished < self.min_finished_lines * lines)
        short = batch.of_lines(prose & (letters <= self.short_line))
        yield "en_short_lines", judged & (short > self.max_short_lines * lines)
