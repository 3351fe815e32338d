import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.code_points import (
    Batch,
    Beginnings,
    CharacterClass,
    classify,
    code_points,
    first_reasons,
    text_of,
)

TEXTS = st.text(alphabet=st.characters() | st.sampled_from("\n 中国の가aé1，,😀"), max_size=60)


@pytest.mark.parametrize(
    ("characters", "expected"),
    [
        ("国々〇\U00020000", CharacterClass.HAN),
        ("のカ한ﾊ", CharacterClass.KANA_HANGUL),
        ("aZéß", CharacterClass.LATIN),
        ("Яαאा", CharacterClass.LETTER),
        ("09٣①", CharacterClass.DIGIT),
        ("，。！《》【】、", CharacterClass.CJK_PUNCTUATION),
        (",.!$+<“”…—·", CharacterClass.PUNCTUATION),
        (" \t\u3000\r", CharacterClass.SPACE),
        ("\n", CharacterClass.NEWLINE),
        ("😀√€\ue000\x00", CharacterClass.OTHER),
    ],
)
def test_every_character_has_a_class(characters, expected):
    assert classify(code_points(characters)).tolist() == [expected] * len(characters)


@given(st.text(st.characters(exclude_categories=[])))
def test_code_points_and_back_is_the_same_text(text):
    codes = code_points(text)
    assert codes.tolist() == [ord(character) for character in text]
    assert text_of(codes) == text


def test_counts_of_a_text():
    batch = Batch(["2023年，GDP增长5.2%\n见表 1。", ""])
    assert batch.counts[0, CharacterClass.HAN] == 5
    assert batch.counts[0, [CharacterClass.LATIN, CharacterClass.DIGIT]].tolist() == [3, 7]
    assert batch.visible.tolist() == [len(batch.texts[0]) - 2, 0]
    assert batch.letters.tolist() == [8, 0]


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_lines_and_their_counts_add_up_to_the_texts(texts):
    batch = Batch(texts)
    lines = [line for text in texts for line in text.split("\n")]
    spans = zip(batch.line_starts, batch.line_ends, strict=True)
    assert [text_of(batch.codes[start:end]) for start, end in spans] == lines
    for line, counts in zip(lines, batch.line_counts, strict=True):
        assert counts.tolist() == Batch([line]).counts[0].tolist()
    assert batch.of_lines(batch.line_counts).tolist() == batch.counts.tolist()
    visible = [sum(not character.isspace() for character in text) for text in texts]
    assert batch.visible.tolist() == visible


@given(st.lists(st.text("abc\n", max_size=12), min_size=1, max_size=4))
def test_no_word_begins_where_none_may(texts):
    found = Beginnings(["ab", "abc", "c"]).count(Batch(texts)).tolist()
    assert found == [text.count("ab") + text.count("c") for text in texts]


def test_the_first_reason_counts():
    batch = Batch(["a", "b", "c"])
    one, two = np.array([False, True, False]), np.array([True, True, False])
    assert first_reasons(batch, [("one", one), ("two", two)]) == ["two", "one", None]
