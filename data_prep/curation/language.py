"""Chinese, English or something else, by the scripts of a text and the small words of English.

This is no statistical model. Kana and hangul tell Japanese and Korean from Chinese, and the share
of English function words tells English from other languages in Latin letters; both are counted in
one pass. It cannot tell Mandarin from Cantonese or Classical Chinese, nor Japanese written without
kana, and it takes an English list of names or a program for `other`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from data_prep.curation.code_points import Batch, CharacterClass

# Common in English and not a word of the other large languages in Latin letters.
ENGLISH = (
    "the of and to that with for this from which are have has by be it its you your they their not "
    "or when where what how will would should been were because while there these those"
)
FUNCTION_WORDS = frozenset(ENGLISH.split())
LATIN_WORD = re.compile(r"[^\W\d_]+")


class Language(StrEnum):
    """The languages the corpus is made of."""

    ZH = "zh"
    EN = "en"
    OTHER = "other"


@dataclass(frozen=True)
class Verdict:
    """A language and how sure it is: 0 to 1, the measure that decided against its threshold."""

    language: Language
    score: float

    @property
    def reason(self) -> str | None:
        """Why a text of this language goes, or None for Chinese and English."""
        return "other_language" if self.language is Language.OTHER else None


@dataclass(frozen=True)
class LanguageRule:
    """Thresholds of `identify`. As a rule it drops what is neither Chinese nor English."""

    min_chinese: float = 0.3
    """Least share of Han characters among letters of a Chinese text; a Latin word counts as one
    letter in four, about what it takes in Chinese."""
    max_kana_hangul: float = 0.05
    """Most kana and hangul, as a share of them and Han characters together, in a Chinese text."""
    min_latin: float = 0.9
    """Least share of Latin letters among letters of an English text."""
    min_function_words: float = 0.12
    """Least share of function words among the words of an English text."""
    sample_characters: int = 3000
    """How far into a text function words are counted."""

    def identify(self, batch: Batch) -> list[Verdict]:
        """The language of each text. The score is the share of Han characters, or of function words
        scaled to 1 at twice the threshold; for `other` it is 1 minus the better of both.
        """
        rows = batch.counts[:, CharacterClass.HAN : CharacterClass.DIGIT].tolist()
        return [self._verdict(text, *row) for text, row in zip(batch.texts, rows, strict=True)]

    def reason(self, batch: Batch) -> list[str | None]:
        """Of each text `other_language`, or None for Chinese and English."""
        return [verdict.reason for verdict in self.identify(batch)]

    def _verdict(self, text: str, han: int, foreign: int, latin: int, other: int) -> Verdict:
        letters = han + foreign + latin + other
        if not letters:
            return Verdict(Language.OTHER, 1.0)
        chinese = han / (han + foreign + latin / 4 + other)
        if chinese >= self.min_chinese and foreign <= self.max_kana_hangul * (han + foreign):
            return Verdict(Language.ZH, chinese)
        english = 0.0
        if latin >= self.min_latin * letters:
            english = min(1.0, self._function_words(text) / (2 * self.min_function_words))
            if english >= 0.5:
                return Verdict(Language.EN, english)
        return Verdict(Language.OTHER, 1.0 - english)

    def _function_words(self, text: str) -> float:
        words = LATIN_WORD.findall(text[: self.sample_characters].lower())
        return sum(word in FUNCTION_WORDS for word in words) / max(len(words), 1)
