import random

import pytest

from data_prep.curation.code_points import Batch
from data_prep.curation.language import LanguageRule
from data_prep.curation.quality_zh import QualityZh
from data_prep.curation.repetition import RepetitionZh
from data_prep.curation.script_policy import Policy, ScriptPolicy
from tests.data_prep.curation.texts import (
    CELLS_ZH,
    COURT_ZH,
    GAMBLING_ZH,
    LINKS_WITH_DATES_ZH,
    LINKS_ZH,
    NEWS_ZH,
    NOTE_ZH,
    REPORT_ZH,
    SHORT_NEWS_ZH,
    TRADITIONAL_ZH,
)

POEM = """\
白日依山尽，
黄河入海流。
欲穷千里目，
更上一层楼。
春眠不觉晓，
处处闻啼鸟。
夜来风雨声，
花落知多少。"""


def reason(text: str, rule: QualityZh | None = None) -> str | None:
    return (rule or QualityZh()).reason(Batch([text]))[0]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(NEWS_ZH, id="official news"),
        pytest.param(SHORT_NEWS_ZH, id="two lines of news"),
        pytest.param(REPORT_ZH, id="annual report"),
        pytest.param(NOTE_ZH, id="note to the accounts"),
        pytest.param(CELLS_ZH, id="a cell to a line"),
        pytest.param(COURT_ZH, id="report on a gambling case"),
        pytest.param(TRADITIONAL_ZH, id="traditional characters"),
        pytest.param(POEM, id="verse"),
        pytest.param("\n".join([REPORT_ZH, NOTE_ZH] * 300), id="200,000 characters"),
    ],
)
def test_what_is_wanted_stays(text):
    assert reason(text) is None


SENTENCE = "公司将继续推进改革，并在年内完成主要项目的建设和验收。"

DROPPED = [
    ("zh_too_short", "公告编号"),
    ("zh_few_letters", "中标号码 " + " ".join(str(10007 * n) for n in range(40))),
    ("zh_few_letters", SENTENCE * 2 + "\n" + "=+-*/|&%$#@!~" * 6),
    ("zh_symbols", "".join(f"{character}★♥" for character in SENTENCE + SENTENCE)),
    (
        "zh_mojibake",
        "鏈嶅姟鍣ㄦ槸鍏徃鐨勯噸瑕佽祫浜э紝璇峰強鏃舵洿鏂帮紒锛屻€傞敓鏂ゆ嫹閿熸枻锟斤拷锟斤拷"
        + SENTENCE,
    ),
    ("zh_brackets", "【爆款推荐】【今日特价】【全场清仓】【限量供应】" + SENTENCE),
    ("spam_gambling", GAMBLING_ZH),
    ("zh_bullet_lines", "\n".join(f"• {SENTENCE[n : n + 8]}，" for n in range(10))),
    ("zh_ellipsis_lines", "\n".join(f"{SENTENCE[n : n + 12]}……" for n in range(10))),
    ("zh_short_lines", LINKS_ZH),
    ("zh_unfinished_lines", LINKS_WITH_DATES_ZH),
    ("zh_no_marks", (SENTENCE.replace("，", "").rstrip("。") * 6)),
    ("zh_no_function_words", "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉戌亥，" * 5),
    ("zh_low_entropy", "好的，是了。" * 40),
]


@pytest.mark.parametrize(("expected", "text"), DROPPED)
def test_what_is_not_wanted_is_dropped_with_its_reason(expected, text):
    assert reason(text) == expected


def test_open_brackets_take_no_square_of_their_number():
    assert reason(SENTENCE * 600 + "【" * 200_000) == "zh_few_letters"


def test_the_rules_of_a_language_are_a_list():
    rules = [LanguageRule(), ScriptPolicy(Policy.DROP), QualityZh(), RepetitionZh()]

    def verdicts(text: str) -> list[str | None]:
        batch = Batch([text])
        return [rule.reason(batch)[0] for rule in rules]

    assert verdicts(REPORT_ZH) == verdicts(NOTE_ZH) == verdicts(NEWS_ZH) == [None] * 4
    assert verdicts(GAMBLING_ZH) == [None, None, "spam_gambling", None]
    assert verdicts(TRADITIONAL_ZH) == [None, "traditional_characters", None, None]


def test_thresholds_are_fields():
    assert reason(SHORT_NEWS_ZH, QualityZh(min_characters=200)) == "zh_too_short"
    assert reason(LINKS_ZH, QualityZh(max_short_lines=1.0)) is None
    assert reason(GAMBLING_ZH, QualityZh(max_spam=0.9)) is None


def test_no_rule_grows_stricter_with_length():
    """Distinct characters per character fall with length; the rules do not ask for them."""
    generator = random.Random(5)
    sentences = [line for text in (NEWS_ZH, REPORT_ZH, COURT_ZH) for line in text.split("\n")]
    for lines in (20, 200, 2000):
        assert reason("\n".join(generator.choices(sentences, k=lines))) is None


def test_texts_are_judged_together_as_alone():
    texts = [text for _, text in DROPPED] + [NEWS_ZH, "", REPORT_ZH, "\n", NOTE_ZH]
    for rule in (QualityZh(), RepetitionZh(), ScriptPolicy(Policy.DROP), LanguageRule()):
        assert rule.reason(Batch(texts)) == [rule.reason(Batch([text]))[0] for text in texts]
        assert rule.reason(Batch([])) == []
