import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.code_points import (
    Analysed,
    CharacterClass,
    classify,
    code_points,
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
    analysed = Analysed("2023年，GDP增长5.2%\n见表 1。")
    assert analysed.count(CharacterClass.HAN) == 5
    assert analysed.count(CharacterClass.LATIN, CharacterClass.DIGIT) == 3 + 7
    assert analysed.visible == len(analysed.text) - 2


@given(TEXTS)
def test_lines_and_their_counts_add_up_to_the_text(text):
    analysed = Analysed(text)
    assert [text[:end].count("\n") for end in analysed.line_ends] == list(
        range(len(analysed.lines))
    )
    assert analysed.line_counts.sum(axis=0).tolist() == analysed.counts
    for line, counts in zip(analysed.lines, analysed.line_counts, strict=True):
        own = Analysed(line).counts
        own[CharacterClass.NEWLINE] = int(counts[CharacterClass.NEWLINE])
        assert counts.tolist() == own
    assert analysed.visible == sum(not character.isspace() for character in text)
