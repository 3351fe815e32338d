"""Exact-fact accuracy: does an answer contain the expected value?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

LOOSE_BLANK = re.compile("(?<![0-9a-z]) | (?![0-9a-z])")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
CHINESE_NUMERALS = "〇零一二三四五六七八九十百千万亿两"
NUMERAL = rf"[0-9{CHINESE_NUMERALS}]"


def normalise(text: str) -> str:
    """Full-width forms to ASCII (NFKC), case folded, no thousands separators.

    Blanks go, except that one stays between two Latin words or numbers.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return THOUSANDS.sub("", LOOSE_BLANK.sub("", folded))


def contains_fact(answer: str, accepted: Sequence[str]) -> bool:
    """Whether the answer contains one of the accepted values, written out whole.

    A value is not found inside a longer number or Latin word: 3年 is not in 13年, 5% not in 0.5%,
    三年 not in 十三年.
    """
    text = normalise(answer)
    return any(_pattern(normalise(value)).search(text) for value in accepted)


def _pattern(value: str) -> re.Pattern[str]:
    before = after = ""
    if re.match(NUMERAL, value):
        before = rf"(?<!{NUMERAL})(?<!\d\.)"
    elif re.match("[a-z]", value):
        before = "(?<![a-z])"
    if re.search(rf"{NUMERAL}$", value):
        after = rf"(?!\.?\d)(?!{NUMERAL})"
    elif re.search("[a-z]$", value):
        after = "(?![a-z])"
    return re.compile(before + re.escape(value) + after)
