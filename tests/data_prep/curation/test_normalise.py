import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.curation.code_points import Batch
from data_prep.curation.edits import Edited
from data_prep.curation.normalise import Normalise
from tests.data_prep.curation.texts import NEWS_ZH, REPORT_ZH

SPELLINGS = st.text(
    st.sampled_from(
        "a中\u0301\u3099かé \t\u3000\xa0\u2003\n\r\x0b\u2028\u200b\ufeff\xad\x00Ａ１，\u212b"
    )
    | st.characters(exclude_categories=[]),
    max_size=40,
)


@pytest.mark.parametrize(
    ("text", "expected", "counts"),
    [
        (
            "\ufeff第一章\r\n第二章\r第三章",
            "第一章\n第二章\n第三章",
            {"invisible": 1, "line_ends": 2},
        ),
        ("ＧＤＰ增长５．２％，《规划》", "GDP增长5．2％，《规划》", {"half_width": 3}),
        ("cafe\u0301", "café", {"composed": 1}),
        ("零\u200b宽\u00ad字\x07符", "零宽字符", {"invisible": 3}),
        ("营业\u3000收入\t\t100", "营业 收入 100", {"blanks": 4}),
        ("甲  \n\n\n\n乙 ", "甲\n\n乙", {"blanks": 3}),
        ("    def main():\n        return", "    def main():\n        return", {}),
        ("می\u200cخواهم 👩\u200d💻", "می\u200cخواهم 👩\u200d💻", {}),
        ("①²㎡", "①²㎡", {}),
    ],
)
def test_one_spelling(text, expected, counts):
    edited = Normalise().apply(text)
    assert (edited.text, edited.counts) == (expected, counts)


def test_long_runs_of_blanks_take_no_square_of_their_length():
    assert Normalise().apply("甲" + " " * 300_000 + "乙" + "\n" * 300_000).text == "甲 乙"


def test_choices_can_be_switched_off():
    text = "Ａ  cafe\u0301\n\n\nb"
    kept = Normalise(compose=False, half_width=False, collapse_blanks=False).apply(text)
    assert kept.text == text


def test_a_clean_text_is_left_as_it_is():
    for text in (NEWS_ZH, REPORT_ZH):
        assert Normalise().apply(text) == Edited(text, {})


@given(SPELLINGS, st.booleans(), st.booleans(), st.booleans())
@example("a\n ", True, True, True)
@example("Ａ\u0301", True, True, True)
@example("e\u200b\u0301", True, True, True)
def test_normalising_twice_changes_nothing(text, compose, half_width, collapse):
    rule = Normalise(compose, half_width, collapse)
    once = rule.apply(text).text
    again = rule.apply(once)
    assert again.text == once
    assert again.counts == {}


@given(SPELLINGS, SPELLINGS)
def test_a_text_that_may_not_change_does_not(text, other):
    may_change = Normalise().may_change(Batch([other, text]))[1]
    assert may_change or Normalise().apply(text) == Edited(text, {})


def test_a_clean_text_may_not_change():
    assert not Normalise().may_change(Batch([NEWS_ZH, REPORT_ZH])).any()
