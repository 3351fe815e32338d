"""ROUGE and BLEU-4 under the profiles of two fine-tuning tools."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jieba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge import Rouge
from rouge_chinese import Rouge as RougeChinese

from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.text_metrics import METRICS, PROFILES, TextScores, score_texts

PAIRS = [
    ("国资委监管的企业包括中央企业。", "国资委监管中央企业和地方国有企业。"),
    ("国企改革三年行动已经完成。它提高了效率。", "国企改革三年行动于2022年完成，提高了效率。"),
    ("The board approved the plan. It starts now.", "The board has approved a plan to start now."),
    ("是", "否"),
    ("是", "是"),
    ("。", "完成。"),
    ("A股 上市\n公司", "A股上市公司"),
]  # fmt: skip


def scores(prediction: str, reference: str, profile: str) -> dict[str, float]:
    found = score_texts([prediction], [reference], profile, ["1"])
    return {metric: found.scores[metric][0] for metric in METRICS}


def method3(prediction: list[str], reference: list[str]) -> float:
    function = SmoothingFunction().method3
    return 100 * float(sentence_bleu([reference], prediction, smoothing_function=function))


@pytest.mark.parametrize(("prediction", "reference"), PAIRS)
def test_llamafactory_is_rouge_chinese_on_words_and_bleu_on_characters(
    prediction: str, reference: str
) -> None:
    found = scores(prediction, reference, "llamafactory")

    words = [" ".join(jieba.cut(text)) for text in (prediction, reference)]
    expected = RougeChinese().get_scores(*words)[0]
    for name, theirs in (("rouge1", "rouge-1"), ("rouge2", "rouge-2"), ("rougel", "rouge-l")):
        assert found[name] == round(100 * expected[theirs]["f"], 4)
    assert found["bleu4"] == round(method3(list(prediction), list(reference)), 4)


@pytest.mark.parametrize(("prediction", "reference"), PAIRS)
def test_swift_is_rouge_on_words_and_bleu_on_words(prediction: str, reference: str) -> None:
    found = scores(prediction, reference, "swift")

    cuts = [[w.strip(" ") for w in jieba.cut(t) if w.strip(" ")] for t in (prediction, reference)]
    expected = Rouge().get_scores(" ".join(cuts[0]), " ".join(cuts[1]))[0]
    for name, theirs in (("rouge1", "rouge-1"), ("rouge2", "rouge-2"), ("rougel", "rouge-l")):
        assert found[name] == pytest.approx(100 * expected[theirs]["f"], abs=1e-9)
    assert found["bleu4"] == pytest.approx(method3(*cuts), abs=1e-9)


def test_the_profiles_disagree_so_their_numbers_do_not_mix() -> None:
    prediction, reference = PAIRS[1]
    characters = scores(prediction, reference, "llamafactory")["bleu4"]
    words = scores(prediction, reference, "swift")["bleu4"]
    assert characters > 1.3 * words > 0


@pytest.mark.parametrize("profile", PROFILES)
def test_repetition_is_free_in_rouge_1_but_not_in_bleu(profile: str) -> None:
    once = scores("国资国资国资国资国资", "国资", profile)
    assert once["rouge1"] == pytest.approx(100, abs=1e-3)
    assert once["bleu4"] < 60


@pytest.mark.parametrize("profile", PROFILES)
def test_an_empty_prediction_scores_zero_and_is_told_apart(profile: str) -> None:
    found = score_texts(["", "完成改革"], ["完成改革", "完成改革"], profile, ["1", "2"])

    assert [found.scores[metric][0] for metric in METRICS] == [0, 0, 0, 0]
    assert found.empty == {0}
    assert found.mean("rouge1") == pytest.approx(50, abs=1e-3)
    assert found.mean_of_nonempty("rouge1") == pytest.approx(100, abs=1e-3)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("prediction", [" ", "\n", "\u3000", ".", "...", "。", "!?", "\t . "])
def test_blanks_and_punctuation_alone_are_scored(profile: str, prediction: str) -> None:
    found = scores(prediction, "企业完成了改革", profile)
    assert all(0 <= value < 1 for value in found.values())


def test_without_any_word_there_is_no_mean_of_the_rest() -> None:
    found = score_texts(["", " "], ["甲", "乙"], "swift", ["1", "2"])
    assert (found.mean("bleu4"), found.mean_of_nonempty("bleu4")) == (0, None)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("reference", ["", " \n"])
def test_an_empty_reference_is_refused_with_its_item(profile: str, reference: str) -> None:
    if profile == "swift" and reference:
        reference = "."  # its tool keeps line ends as words, and fails on full stops alone
    with pytest.raises(UserError, match="item q7: found the reference"):
        score_texts(["甲", "乙"], ["甲", reference], profile, ["q6", "q7"])


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(UserError, match="one of llamafactory, swift"):
        score_texts(["甲"], ["甲"], "sacrebleu", ["1"])


@pytest.mark.parametrize("profile", PROFILES)
def test_long_answers_do_not_exhaust_the_recursion_of_the_package(profile: str) -> None:
    limit = sys.getrecursionlimit()
    assert scores("甲", "甲 " + "乙 " * 1100, profile)["rougel"] > 0
    assert sys.getrecursionlimit() == limit


CHINESE = st.text("国资委监管企业改革完成。 a1.", min_size=1, max_size=24)


@settings(max_examples=60, deadline=None)
@given(text=st.text("国资委监管企业改革完成", min_size=8, max_size=30))
def test_the_reference_itself_scores_100(text: str) -> None:
    for profile in PROFILES:
        found = scores(text, text, profile)
        assert found["rouge1"] == pytest.approx(100, abs=1e-3)
    assert scores(text, text, "llamafactory")["bleu4"] == 100


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(CHINESE, CHINESE), min_size=1, max_size=5), data=st.data())
def test_scores_do_not_depend_on_the_order_of_pairs(
    pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    pairs = [(prediction, reference + "业") for prediction, reference in pairs]
    order = data.draw(st.permutations(range(len(pairs))))
    for profile in PROFILES:
        straight, shuffled = _score(pairs, profile), _score([pairs[i] for i in order], profile)
        for metric in METRICS:
            column = straight.scores[metric]
            assert all(0 <= value <= 100 for value in column)
            assert shuffled.scores[metric] == tuple(column[i] for i in order)
            assert shuffled.mean(metric) == pytest.approx(straight.mean(metric))


def _score(pairs: list[tuple[str, str]], profile: str) -> TextScores:
    names = [str(i) for i in range(len(pairs))]
    return score_texts([p for p, _ in pairs], [r for _, r in pairs], profile, names)


def test_jieba_reads_its_dictionary_quietly_and_leaves_no_cache_behind(tmp_path: Path) -> None:
    program = (
        "from megatron_soaes.evaluation.text_metrics import score_texts\n"
        "for profile in ('llamafactory', 'swift'):\n"
        "    score_texts(['国资委'], ['国资委'], profile, ['1'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_the_versions_behind_the_numbers_are_known() -> None:
    assert PROFILES["llamafactory"].versions().keys() == {"jieba", "rouge-chinese", "nltk"}
    assert PROFILES["swift"].versions().keys() == {"jieba", "rouge", "nltk"}
