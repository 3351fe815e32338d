"""Does an answer contain the expected value?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.evaluation.facts import contains_fact, normalise


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("注册资本为３５亿元。", "35亿元"),
        ("注册资本为 35 亿元。", "35亿元"),
        ("总部位于ＢＥＩＪＩＮＧ。", "Beijing"),
        ("It has 12,500 employees.", "12500"),
        ("It has 12500 employees.", "12,500 employees"),
        ("它成立于三年前", "三年"),
        ("by the State  Grid\nCorporation of China", "state grid corporation"),
        ("占比5%。", "5%"),
        ("2023年完成", "2023"),
    ],
)
def test_values_are_found_in_whatever_width_case_and_spacing(answer: str, value: str) -> None:
    assert contains_fact(answer, [value])


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("共13年", "3年"),
        ("占比0.5%", "5%"),
        ("占比15%", "5%"),
        ("资本350亿元", "35"),
        ("为3.5", "3"),
        ("持续十三年", "三年"),
        ("共二十万", "二十"),
        ("the catalogue", "cat"),
        ("", "35"),
        ("12,500", "500"),
    ],
)
def test_a_value_inside_a_longer_number_or_word_is_another_value(answer: str, value: str) -> None:
    assert not contains_fact(answer, [value])


def test_one_of_several_accepted_values_is_enough() -> None:
    assert contains_fact("用了3年", ["三年", "3年"])
    assert not contains_fact("用了4年", ["三年", "3年"])


@given(st.text("国资，ａＢ１ 　\n12,000.5%", max_size=40))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@given(st.text("国资企业abc123.%, ", min_size=1, max_size=12).filter(lambda t: bool(t.strip())))
def test_every_value_is_found_between_chinese_words(value: str) -> None:
    assert contains_fact(f"答案是：{value}。", [value])
