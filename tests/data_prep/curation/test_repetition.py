import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.code_points import Batch
from data_prep.curation.repetition import (
    Repetition,
    RepetitionZh,
    UInt64,
    ngrams,
    repeated_fraction,
    repeated_places,
    unit_hashes,
)
from tests.data_prep.curation.texts import NEWS_EN, NEWS_ZH, NOTE_ZH, REPORT_EN, REPORT_ZH

PROSE_ZH = NEWS_ZH.split("\n")[1]
PROSE_EN = NEWS_EN.split("\n")[1]


def zh(text: str) -> str | None:
    return RepetitionZh().reason(Batch([text]))[0]


def units_of(text: str) -> UInt64:
    return unit_hashes(Batch([text]))[0]


def en(text: str) -> str | None:
    return Repetition().reason(Batch([text]))[0]


def test_wanted_texts_stay():
    assert [zh(text) for text in (NEWS_ZH, REPORT_ZH, NOTE_ZH, "")] == [None] * 4
    assert [en(text) for text in (NEWS_EN, REPORT_EN, "")] == [None] * 3


@pytest.mark.parametrize(("rule", "line"), [(zh, PROSE_ZH), (en, PROSE_EN)])
def test_a_line_again_and_again(rule, line):
    assert rule("\n".join([line] * 5)) == "duplicate_lines"


@pytest.mark.parametrize(("rule", "prose"), [(zh, PROSE_ZH), (en, PROSE_EN)])
def test_paragraphs_of_one_line_count_as_lines_first(rule, prose):
    assert rule("\n\n".join([prose] * 5)) == "duplicate_lines"


def test_a_paragraph_again_and_again():
    """With its lines allowed to repeat, the paragraph is what counts."""
    rule = Repetition(max_duplicate_lines=1.0, max_duplicate_line_characters=1.0)
    text = "\n\n".join([NEWS_EN, REPORT_EN, NEWS_EN, NEWS_EN])
    assert rule.reason(Batch([text]))[0] == "duplicate_paragraphs"


def test_a_phrase_again_and_again():
    words = random.Random(0).sample(range(10**6), 100)
    text = " ".join(f"w{word} click here now" for word in words)
    assert en(text) == "top_ngram"
    names = "".join(chr(0x4E00 + n) + "领取优惠" for n in range(100))
    assert zh(names) == "top_ngram"


def test_sentences_run_together():
    assert en(" ".join([REPORT_EN.replace("\n", " ")] * 2)) == "repeated_ngrams"
    assert zh(PROSE_ZH * 3) == "repeated_ngrams"


def test_short_labels_of_a_table_are_not_counted_as_lines():
    rows = [f"合计\n{n * 1237}" for n in range(12)]
    assert zh("\n".join([*rows, REPORT_ZH])) is None


def test_units_are_han_characters_and_runs_of_other_letters():
    def units(text: str) -> int:
        return len(units_of(text))

    assert units("中国石油") == 4
    assert units("GDP增长5.2%") == 5
    assert units("the bank's rate") == 4
    assert units(" ，。\n") == units("") == 0
    first, second = units_of("增长 增长").reshape(2, 2).tolist()
    assert first == second
    assert len(set(units_of("ab ba a b aab").tolist())) == 5


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_repeated_fraction_is_what_counting_by_hand_gives(numbers, n):
    units = units_of(" ".join(f"u{number}" for number in numbers))
    seen: set[tuple[int, ...]] = set()
    covered = set()
    for start in range(len(numbers) - n + 1):
        gram = tuple(numbers[start : start + n])
        if gram in seen:
            covered.update(range(start, start + n))
        seen.add(gram)
    assert repeated_fraction(units, n) == pytest.approx(len(covered) / max(len(numbers), 1))
    counted = Counter(ngrams(units, n).tolist())
    assert len(counted) == len(seen)


@given(st.lists(st.integers(0, 5), min_size=50, max_size=80))
def test_the_shortcuts_change_no_verdict(numbers):
    text = " ".join(f"u{number}" for number in numbers)
    rule = Repetition(max_duplicate_lines=1.0, max_duplicate_line_characters=1.0)
    units = units_of(text)
    top = any(
        max(Counter(ngrams(units, n).tolist()).values()) * n > limit * len(units)
        for n, limit in rule.max_top
    )
    again = any(repeated_fraction(units, n) > limit for n, limit in rule.max_repeated)
    expected = "top_ngram" if top else "repeated_ngrams" if again else None
    assert rule.reason(Batch([text]))[0] == expected


@given(st.lists(st.integers(0, 30), max_size=200))
def test_repeated_places_are_those_of_values_that_stood_before(numbers):
    hashes = np.array(numbers, dtype=np.uint64)
    expected = [place for place, number in enumerate(numbers) if number in numbers[:place]]
    assert repeated_places(hashes).tolist() == expected


def test_what_another_text_says_is_no_repeat():
    assert RepetitionZh().reason(Batch([PROSE_ZH] * 3)) == [None] * 3
