"""Rules on the form of Chinese texts.

No rule needs word segmentation, and none grows stricter with length: there is no longest text, and
variety is measured by entropy and not by distinct characters per character. Lines of tables of
numbers are set aside, so that an annual report is judged by its prose and a statement of accounts
by nothing but its labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.curation.code_points import (
    Batch,
    Beginnings,
    CharacterClass,
    Counts,
    first_reasons,
)
from data_prep.curation.lines import (
    TERMINAL,
    Mask,
    bullet_fractions,
    ellipsis_fractions,
    ends_with,
    is_table_row,
    mark_table,
)
from data_prep.curation.spam import spam_reasons

COMMONEST = "的了是在和有不为"
"""Of the characters of grammar those that are asked first, because most texts hold some."""
FUNCTION_CHARACTERS = "的了是在和有不为與与及以之其也于於对對为為就"
ENDINGS = mark_table(TERMINAL)
VERSE_ENDINGS = mark_table(TERMINAL + "，、,")
GARBLED = ["锛", "銆", "鐨", "涓€", "锟斤", "�"]
"""UTF-8 read as GBK: the full-width comma, the full stop, 的, 一; and characters lost for good."""
MOJIBAKE = re.compile("|".join(GARBLED))
MOJIBAKE_BEGINNINGS = Beginnings(GARBLED)
LENTICULAR = re.compile("【[^【】\n]*】")
LENTICULAR_BEGINNINGS = Beginnings("【")
ENTROPY_SAMPLE = 20_000
GROUPS = 256


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

    def reason(self, batch: Batch) -> list[str | None]:
        """Of each text: `zh_too_short`, `zh_few_letters`, `zh_symbols`, `zh_mojibake`,
        `zh_brackets`, `spam_*` (`spam.TRADES`), `zh_bullet_lines`, `zh_ellipsis_lines`,
        `zh_short_lines`, `zh_unfinished_lines`, `zh_no_marks`, `zh_no_function_words`,
        `zh_low_entropy` or None.
        """
        found = first_reasons(batch, self._characters(batch))
        spam = spam_reasons(batch, self.max_spam)
        rows = is_table_row(batch)
        rest = first_reasons(batch, [*self._lines(batch, rows), *self._prose(batch, rows)])
        return [one or two or three for one, two, three in zip(found, spam, rest, strict=True)]

    def _characters(self, batch: Batch) -> Iterator[tuple[str, Mask]]:
        counts, letters, visible = batch.counts, batch.letters, batch.visible
        judged = letters + counts[:, CharacterClass.DIGIT]
        yield "zh_too_short", judged < self.min_characters
        yield "zh_few_letters", letters < self.min_letters * visible
        yield "zh_symbols", counts[:, CharacterClass.OTHER] > self.max_symbols * visible
        garbled = _characters_in(batch, MOJIBAKE, MOJIBAKE_BEGINNINGS)
        yield "zh_mojibake", garbled > self.max_mojibake * visible
        inside = _characters_in(batch, LENTICULAR, LENTICULAR_BEGINNINGS)
        yield "zh_brackets", inside > self.max_lenticular * visible

    def _lines(self, batch: Batch, rows: Mask) -> Iterator[tuple[str, Mask]]:
        yield "zh_bullet_lines", bullet_fractions(batch) > self.max_bullet_lines
        yield "zh_ellipsis_lines", ellipsis_fractions(batch) > self.max_ellipsis_lines
        outside = batch.of_lines(batch.line_counts * ~rows[:, None])
        letters = outside[:, CharacterClass.HAN : CharacterClass.DIGIT].sum(axis=1)
        visible = outside[:, : CharacterClass.SPACE].sum(axis=1)
        yield "zh_few_letters", letters < self.min_prose_letters * visible
        yield "zh_short_lines", self._are_menus(batch, rows)

    def _are_menus(self, batch: Batch, rows: Mask) -> Mask:
        han = batch.line_counts[:, CharacterClass.HAN]
        short = (han > 0) & (han < self.prose_line) & ~rows & ~ends_with(batch, VERSE_ENDINGS)
        menus: Mask = batch.of_lines(short) >= self.min_lines
        menus &= batch.of_lines(han * short) > self.max_short_lines * batch.of_lines(han)
        # Statements taken from a PDF file have their labels in lines of their own.
        return menus & (batch.counts[:, CharacterClass.DIGIT] <= batch.letters)

    def _prose(self, batch: Batch, rows: Mask) -> Iterator[tuple[str, Mask]]:
        counts = batch.line_counts
        han = counts[:, CharacterClass.HAN]
        prose = (han >= self.prose_line) & ~rows
        lines, letters = batch.of_lines(prose), batch.of_lines(han * prose)
        finished = batch.of_lines(ends_with(batch, ENDINGS) & prose)
        few = finished < self.min_finished_lines * lines
        yield "zh_unfinished_lines", few & (lines >= self.min_prose_lines)
        judged = letters >= self.min_judged
        marks = counts[:, CharacterClass.CJK_PUNCTUATION : CharacterClass.SPACE].sum(axis=1)
        yield "zh_no_marks", judged & (batch.of_lines(marks * prose) < self.min_marks * letters)
        yield "zh_no_function_words", judged & self._few_function_characters(batch)
        yield "zh_low_entropy", judged & low_entropies(batch, self.min_entropy)

    def _few_function_characters(self, batch: Batch) -> Mask:
        least = self.min_function_characters
        return np.fromiter(
            (
                sum(map(text.__contains__, COMMONEST)) < least
                and sum(map(text.__contains__, FUNCTION_CHARACTERS)) < least
                for text in batch.texts
            ),
            dtype=np.bool_,
            count=len(batch.texts),
        )


def low_entropies(batch: Batch, least: float) -> Mask:
    """Texts with less than `least` nats of entropy in the Han characters among their first
    `ENTROPY_SAMPLE` characters, bool [texts].
    """
    han = batch.classes == CharacterClass.HAN
    for number in np.flatnonzero(batch.lengths > ENTROPY_SAMPLE).tolist():
        han[batch.starts[number] + ENTROPY_SAMPLE : batch.starts[number + 1]] = False
    places = np.flatnonzero(han)
    counts = batch.at(places)
    characters = batch.codes[places]
    # Of groups of characters the entropy is no larger, and they are counted without sorting.
    groups = np.repeat(np.arange(0, len(counts) * GROUPS, GROUPS), counts)
    groups += characters & (GROUPS - 1)
    sizes = np.bincount(groups, minlength=len(counts) * GROUPS).reshape(len(counts), GROUPS)
    products = (sizes * np.log(np.maximum(sizes, 1))).sum(axis=1)
    total = np.maximum(counts, 1)
    # The margin is for what rounding does to a sum.
    mask: Mask = np.log(total) - products / total < least + 1e-9
    ends = np.cumsum(counts)
    for number in np.flatnonzero(mask).tolist():
        own = characters[ends[number] - counts[number] : ends[number]]
        frequencies = np.unique(own, return_counts=True)[1]
        entropy = np.log(max(len(own), 1)) - frequencies @ np.log(frequencies) / max(len(own), 1)
        mask[number] = entropy < least
    return mask


def _characters_in(batch: Batch, pattern: re.Pattern[str], beginnings: Beginnings) -> Counts:
    """Characters that a pattern finds in each text, int64 [texts]."""
    characters = np.zeros(len(batch.texts), dtype=np.int64)
    for number in np.flatnonzero(beginnings.count(batch)).tolist():
        characters[number] = sum(map(len, pattern.findall(batch.texts[number])))
    return characters
