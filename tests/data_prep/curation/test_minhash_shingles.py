"""Units and shingles, against a naive reading of the same definition."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.dedup.shingles import SINGLE_RANGES, batches, jaccard, shingle

TEXT = st.text(st.sampled_from("aBé1 ,。\n中国かナ한𠀀\u0301") | st.characters(codec="utf-8"))


def naive_units(text: str) -> list[str]:
    units: list[str] = []
    inside = False
    for character in text.lower():
        single = any(first <= ord(character) <= last for first, last in SINGLE_RANGES)
        if unicodedata.category(character)[0] not in "LMN":
            inside = False
        elif single or not inside:
            units.append(character)
            inside = not single
        else:
            units[-1] += character
    return units


def naive_shingles(text: str, count: int) -> list[tuple[str, ...]]:
    units = naive_units(text)
    if not units:
        return []
    return [tuple(units[i : i + count]) for i in range(max(1, len(units) - count + 1))]


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("央企改革", 4),
        ("深化GPU改革2024", 6),
        ("the quick, brown fox", 4),
        ("ひらがなと한국어", 8),
        ("。，!? \n", 0),
        ("", 0),
    ],
)
def test_han_kana_and_hangul_are_units_and_so_is_a_run_of_others(text: str, units: int) -> None:
    assert len(shingle([text], 1).hashes) == units


def test_a_short_text_has_one_shingle_and_punctuation_alone_has_none() -> None:
    found = shingle(["one two", "one two three four five six", "...", "one two"], 5)
    assert np.diff(found.starts).tolist() == [1, 2, 0, 1]
    assert found.of(0).tolist() == found.of(3).tolist()


def test_punctuation_spaces_and_case_do_not_count() -> None:
    assert (
        shingle(["Deep, 深化—改革"]).hashes.tolist() == shingle(["deep 深化改革"]).hashes.tolist()
    )


@given(texts=st.lists(TEXT, min_size=1, max_size=8), units=st.integers(1, 6))
def test_equal_runs_of_units_have_equal_hashes_and_others_differ(
    texts: list[str], units: int
) -> None:
    found = shingle(texts, units)
    naive = [run for text in texts for run in naive_shingles(text, units)]
    assert np.diff(found.starts).tolist() == [len(naive_shingles(text, units)) for text in texts]
    names: dict[int, tuple[str, ...]] = {}
    for value, run in zip(found.hashes.tolist(), naive, strict=True):
        assert names.setdefault(value, run) == run
    assert len(names) == len(set(naive))


@given(texts=st.lists(TEXT, max_size=8), characters=st.integers(1, 30))
def test_the_hashes_of_a_text_do_not_depend_on_its_batch(texts: list[str], characters: int) -> None:
    alone = [value for text in texts for value in shingle([text]).hashes.tolist()]
    cut = list(batches(texts, characters))
    assert [text for batch in cut for text in batch] == texts
    assert [value for batch in cut for value in shingle(batch).hashes.tolist()] == alone


@given(left=TEXT, right=TEXT)
def test_jaccard_is_that_of_python_sets(left: str, right: str) -> None:
    first, second = set(naive_shingles(left, 3)), set(naive_shingles(right, 3))
    expected = len(first & second) / len(first | second) if first and second else 0.0
    found = shingle([left, right], 3)
    assert jaccard(found.of(0), found.of(1)) == expected
