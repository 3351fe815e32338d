import pytest

from data_prep.curation.code_points import Batch
from data_prep.curation.script_policy import Policy, ScriptPolicy
from tests.data_prep.curation.texts import (
    NEWS_EN,
    NEWS_ZH,
    NOTE_ZH,
    REPORT_ZH,
    SHORT_NEWS_ZH,
    TRADITIONAL_ZH,
)

SIMPLIFIED = (NEWS_ZH, REPORT_ZH, NOTE_ZH, SHORT_NEWS_ZH)


@pytest.mark.parametrize("text", SIMPLIFIED)
def test_simplified_texts_hold_next_to_no_traditional_characters(text):
    assert ScriptPolicy().traditional(Batch([text]))[0] < 0.05


def test_traditional_text_is_told():
    assert ScriptPolicy().traditional(Batch([TRADITIONAL_ZH]))[0] > 0.9


@pytest.mark.parametrize("text", ["", NEWS_EN, "一二三，山水人"])
def test_texts_that_are_the_same_in_both_scripts(text):
    assert ScriptPolicy().traditional(Batch([text]))[0] == 0.0


def test_keep_changes_and_drops_nothing():
    rule = ScriptPolicy(Policy.KEEP)
    assert rule == ScriptPolicy()
    assert rule.reason(Batch([TRADITIONAL_ZH]))[0] is None
    assert rule.apply(TRADITIONAL_ZH).text == TRADITIONAL_ZH
    assert not rule.apply(TRADITIONAL_ZH).counts


def test_drop():
    rule = ScriptPolicy(Policy.DROP)
    assert rule.reason(Batch([TRADITIONAL_ZH]))[0] == "traditional_characters"
    assert [rule.reason(Batch([text]))[0] for text in SIMPLIFIED] == [None] * len(SIMPLIFIED)
    assert rule.apply(TRADITIONAL_ZH).text == TRADITIONAL_ZH


def test_convert():
    rule = ScriptPolicy(Policy.CONVERT)
    edited = rule.apply(TRADITIONAL_ZH)
    assert edited.text.startswith(
        "国务院国资委召开中央企业负责人会议，部署国有企业改革深化提升行动。"
    )
    assert list(edited.counts) == ["traditional_to_simplified"]
    differing = sum(a != b for a, b in zip(edited.text, TRADITIONAL_ZH, strict=True))
    assert edited.counts["traditional_to_simplified"] == differing > 20
    assert rule.reason(Batch([TRADITIONAL_ZH]))[0] is None
    assert rule.apply(edited.text).text == edited.text


def test_a_quotation_in_the_other_script_is_left_alone():
    text = NEWS_ZH + "碑上刻着「國泰民安」四个字。"
    rule = ScriptPolicy(Policy.CONVERT)
    assert rule.apply(text).text == text
    assert ScriptPolicy(Policy.DROP).reason(Batch([text]))[0] is None
    assert ScriptPolicy(Policy.DROP, min_traditional=0.0).reason(Batch([text]))[0] is not None
