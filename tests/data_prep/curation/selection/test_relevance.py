"""Labels become a model, which scores texts and says why."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.selection.labels import read_labels
from data_prep.curation.selection.relevance import (
    ModelFile,
    RelevanceModel,
    load_model,
    save_model,
)
from data_prep.curation.selection.training import TrainingSettings, train
from megatron_soaes.errors import UserError

SEEDS = Path(__file__).parents[4] / "examples/selection/seeds.jsonl"


def write(file: Path, rows: list[object]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def model_of(bias: float, **weights: float) -> RelevanceModel:
    file = ModelFile(version=1, bias=bias, ngrams=weights, settings={}, training={}, quality={})
    return RelevanceModel(file)


@pytest.fixture(scope="module")
def trained() -> RelevanceModel:
    return RelevanceModel(train(SEEDS, TrainingSettings())[0])


def test_a_text_of_the_domain_scores_higher_in_both_languages(trained: RelevanceModel) -> None:
    inside = ["国有资产评估结果应当报企业备案", "the state-owned enterprise sold assets"]
    outside = ["小狗在草地上追蝴蝶，玩得很开心", "the puppy likes to play with a ball"]
    assert trained.scores(inside).min() > 0.5 > trained.scores(outside).max()


def test_reasons_are_ngrams_of_the_text_and_their_share_in_the_logit() -> None:
    model = model_of(0.5, 国有=3.0, 小狗=-2.0, 国=1.0)
    verdict = model.judge(["国有，国有小狗"])[0]
    # 6 units: 6 + 5 + 4 n-grams.
    logit = 0.5 + (2 * 3.0 - 2.0 + 2 * 1.0) / 15
    assert verdict.score == pytest.approx(1 / (1 + np.exp(-logit)))
    assert [reason.ngram for reason in verdict.supporting] == ["国有", "国"]
    contributions = [reason.contribution for reason in verdict.supporting]
    assert contributions == pytest.approx([0.4, 2 / 15], abs=1e-6)
    assert [reason.ngram for reason in verdict.opposing] == ["小狗"]


def test_the_strongest_reasons_come_first() -> None:
    letters = "国有企业资产评"
    model = model_of(0.0, **{letter: 1.0 + place for place, letter in enumerate(letters)})
    verdict = model.judge([letters])[0]
    assert [reason.ngram for reason in verdict.supporting] == list("评产资业企")
    assert verdict.opposing == ()


def test_a_text_without_words_scores_as_the_bias() -> None:
    verdict = model_of(0.0, 国=1.0).judge(["", "。！"])
    assert [(one.score, one.supporting) for one in verdict] == [(0.5, ()), (0.5, ())]


def test_no_reason_is_an_ngram_that_only_shares_a_slot() -> None:
    dice = random.Random(3)
    others = [chr(point) for point in range(0x5800, 0x6800)]
    texts = ["".join(dice.choices(others, k=100_000)) for _ in range(20)]
    verdicts = model_of(0.0, 国=100.0).judge(texts)
    assert any(verdict.score > 0.5 for verdict in verdicts)
    assert all(verdict.supporting == () for verdict in verdicts)


LIKELY = st.sampled_from("国有资产企业小狗 state dog，\n")
TEXTS = st.lists(st.text(LIKELY, max_size=40), max_size=5)


@given(TEXTS)
def test_scores_lie_between_0_and_1_whatever_is_scored_with_a_text(texts: list[str]) -> None:
    model = model_of(-0.3, 国有=3.1, 小狗=-2.7, state=1.3)
    together = model.judge(texts)
    alone = [model.judge([text])[0] for text in texts]
    assert together == alone
    assert [verdict.score for verdict in together] == model.scores(texts).tolist()
    assert all(0 <= verdict.score <= 1 for verdict in together)


def test_training_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        save_model(train(SEEDS, TrainingSettings())[0], tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_the_seed_moves_folds_and_intervals_only() -> None:
    one, other = (train(SEEDS, TrainingSettings(seed=seed))[0] for seed in (1, 2))
    assert (one.ngrams, one.bias) == (other.ngrams, other.bias)
    assert one.quality != other.quality


def test_the_model_file_keeps_what_it_was_made_from_and_scores_alike(
    tmp_path: Path, trained: RelevanceModel
) -> None:
    save_model(trained.file, tmp_path / "model.json")
    stored = json.loads((tmp_path / "model.json").read_text("utf-8"))
    labels = read_labels(SEEDS, 1)
    assert stored["training"] == {"sha256": labels.sha256, "relevant": 28, "irrelevant": 28}
    assert stored["settings"]["folds"] == 5
    assert stored["quality"]["recall"]["low"] < stored["quality"]["recall"]["high"]
    again = load_model(tmp_path / "model.json")
    assert again.scores(labels.texts).tolist() == trained.scores(labels.texts).tolist()


def test_words_that_say_nothing_are_not_found_relevant(tmp_path: Path) -> None:
    dice = random.Random(5)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    rows: list[object] = [
        {"text": " ".join(dice.choices(words, k=30)), "label": place % 2 == 0}
        for place in range(120)
    ]
    quality = train(write(tmp_path / "noise.jsonl", rows), TrainingSettings())[1]
    assert quality.auc.low < 0.5 < quality.auc.high


def test_rare_ngrams_are_not_learnt(tmp_path: Path) -> None:
    rows: list[object] = [
        {
            "text": f"{'国有' if place % 2 else '小狗'}只此{chr(0x5000 + place)}",
            "label": place % 2 > 0,
        }
        for place in range(24)
    ]
    file = write(tmp_path / "rare.jsonl", rows)
    model, _ = train(file, TrainingSettings(max_ngrams=7))
    assert len(model.ngrams) <= 7
    assert "\u5001" not in train(file, TrainingSettings())[0].ngrams
    assert "\u5001" in train(file, TrainingSettings(min_documents=1))[0].ngrams


GOOD: list[object] = [
    {"text": f"{'国有' if place % 2 else '小狗'}{place}", "label": bool(place % 2)}
    for place in range(24)
]


def test_labels_are_words_or_truth_values_and_notes_are_free(tmp_path: Path) -> None:
    rows = [{"text": " a ", "label": "relevant", "note": "why"}, "", {"text": "b", "label": False}]
    labelled = read_labels(write(tmp_path / "labels.jsonl", list(rows)), 1)
    assert labelled.texts == ["a", "b"]
    assert labelled.relevant.tolist() == [True, False]


@pytest.mark.parametrize(
    ("row", "where", "found"),
    [
        ("{", "labels.jsonl:25", "no JSON"),
        ([1], "labels.jsonl:25", "a JSON list"),
        ({"label": True}, "labels.jsonl:25: text", "nothing"),
        ({"text": "  ", "label": True}, "labels.jsonl:25: text", '"  "'),
        ({"text": "x"}, "labels.jsonl:25: label", "nothing"),
        ({"text": "x", "label": "relevent"}, "labels.jsonl:25: label", '"relevent"'),
        ({"text": "x", "label": 1}, "labels.jsonl:25: label", "1"),
        ({"text": "x", "label": []}, "labels.jsonl:25: label", "[]"),
        ({"text": "国有3 ", "label": False}, "labels.jsonl:25", "the text of line 4 again"),
    ],
)
def test_a_bad_label_is_named_by_its_line(
    tmp_path: Path, row: object, where: str, found: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_labels(write(tmp_path / "labels.jsonl", [*GOOD, row]), 10)
    assert caught.value.where.endswith(where)
    assert found in caught.value.found


@pytest.mark.parametrize("rows", [GOOD[:18], GOOD[::2], []])
def test_too_few_labels_or_one_label_only_are_refused(tmp_path: Path, rows: list[object]) -> None:
    with pytest.raises(UserError, match="at least 10 of each"):
        train(write(tmp_path / "labels.jsonl", rows), TrainingSettings())


def test_texts_that_share_nothing_are_refused(tmp_path: Path) -> None:
    rows: list[object] = [
        {"text": chr(0x5000 + place), "label": place % 2 == 0} for place in range(24)
    ]
    with pytest.raises(UserError, match="no n-gram that several texts share"):
        train(write(tmp_path / "labels.jsonl", rows), TrainingSettings())


@pytest.mark.parametrize(
    "setting", [{"l2": 0.0}, {"folds": 1}, {"folds": 11}, {"min_documents": 0}, {"seed": -1}]
)
def test_settings_without_meaning_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"training: {next(iter(setting))}"):
        TrainingSettings(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"bias": "x"}, {"ngrams": {"国有企业": 1.0}}, {"extra": 1}]
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    file = model_of(0.0, 国=1.0).file.model_dump() | change
    (tmp_path / "model.json").write_text(json.dumps(file), encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.json"):
        load_model(tmp_path / "model.json")


def test_a_missing_or_broken_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="relevance train"):
        load_model(tmp_path / "none.json")
    (tmp_path / "half.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="relevance train"):
        load_model(tmp_path / "half.json")
