"""N-grams as hashes and as text are the same n-grams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.selection.features import MAX_UNITS, hash_ngrams, hash_units, ngrams, units

LIKELY = st.sampled_from("国有企Bb3 é\u0301，.\nかÅŠß𠀀İ")
TEXTS = st.text(LIKELY, max_size=30) | st.text(max_size=15)


def test_units_are_characters_of_chinese_and_words() -> None:
    assert list(units("国企State-owned 3D打印")) == ["国", "企", "state", "owned", "3d", "打", "印"]


def test_ngrams_are_runs_of_units() -> None:
    assert list(ngrams("State owned国企")) == [
        "state", "owned", "国", "企",
        "state owned", "owned国", "国企",
        "state owned国", "owned国企",
    ]  # fmt: skip


@given(st.lists(TEXTS, max_size=4))
def test_hashes_and_texts_agree_in_every_batch(texts: list[str]) -> None:
    hashed = hash_units(texts)
    places = range(len(texts))
    for place, count in zip(places, hashed.counts(), strict=True):
        of_text = slice(hashed.starts[place], hashed.starts[place + 1])
        found = [
            value
            for size in range(1, MAX_UNITS + 1)
            for value in hashed.ngrams(size)[of_text][hashed.begins(size)[of_text]].tolist()
        ]
        named = list(ngrams(texts[place]))
        assert found == hash_ngrams(named).tolist()
        assert count == len(named)


def test_order_matters_and_what_is_no_ngram_is_refused() -> None:
    one, other = hash_ngrams(["国有", "有国"]).tolist()
    assert one != other
    for wrong in ("", "，", "国有企业"):
        with pytest.raises(ValueError, match="no n-gram"):
            hash_ngrams(["国", wrong])
