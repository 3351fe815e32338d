"""A document's three scores, and what a selection makes of them."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.selection.relevance import save_model
from data_prep.curation.selection.scores import (
    NAMES,
    Selection,
    Settings,
    score_documents,
)
from data_prep.curation.selection.training import TrainingSettings, train
from megatron_soaes.errors import UserError

EXAMPLES = Path(__file__).parents[4] / "examples/selection"
OFFICIAL = {
    "id": "official",
    "text": "明国资产部关于国有企业资产评估的通知\n国有资产转让应当经过评估，评估结果报企业备案。",
    "url": "https://www.assets.minguo.example/2026/1.html",
    "date": "2026-01-01",
    "cluster_size": 40,
}
CHAT = {"id": "chat", "text": "小狗在草地上追蝴蝶，孩子们玩得很开心。", "source": "somebody"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    model = tmp_path_factory.mktemp("model") / "model.json"
    save_model(train(EXAMPLES / "seeds.jsonl", TrainingSettings())[0], model)
    sources, authorities = EXAMPLES / "sources.yaml", EXAMPLES / "authorities.yaml"
    return Settings.read(sources, authorities, model, date(2026, 1, 1))


def test_an_official_notice_beats_a_chat_in_every_score(settings: Settings) -> None:
    official, chat = score_documents([OFFICIAL, CHAT], settings)
    for name in NAMES:
        assert 0 <= getattr(chat, name) < getattr(official, name) <= 1


def test_what_is_stored_explains_each_score(settings: Settings) -> None:
    (scores,) = score_documents([OFFICIAL], settings)
    stored = json.loads(json.dumps(scores.to_json()))
    explained = stored["explanations"]
    assert explained["credibility"]["tier"] == "government"
    assert explained["credibility"]["entry"] == "assets.minguo.example"
    assert {reason["ngram"] for reason in explained["relevance"]["supporting"]} & {"资", "产"}
    assert explained["importance"]["authority"]["body"] == "明国资产部"
    assert explained["importance"]["recency"]["date"] == "2026-01-01"
    assert explained["importance"]["duplicates"]["size"] == 40
    for name in NAMES:
        assert stored[name] == explained[name]["score"]


def test_scores_do_not_depend_on_the_documents_beside(settings: Settings) -> None:
    both = score_documents([OFFICIAL, CHAT], settings)
    assert both == score_documents([CHAT, OFFICIAL], settings)[::-1]
    assert both == [*score_documents([OFFICIAL], settings), *score_documents([CHAT], settings)]


@pytest.mark.parametrize(
    ("head", "level"),
    [
        ("明国国务会议办公厅关于国有资本的意见", "national government"),
        ("《青山省国资委关于产权登记的通知》", "regional government"),
        ("和光集团有限公司\n关于分红的公告", "central enterprise"),
        ("东湖电缆股份有限公司公告", "other enterprise"),
        ("Notice of the Ministry of Assets of Minguo on dividends", "national government"),
        ("Heguang Group announces a merger", "central enterprise"),
        ("我们看了和光集团有限公司的新闻", None),
    ],
)
def test_the_example_finds_issuing_bodies(settings: Settings, head: str, level: str | None) -> None:
    assert settings.authorities.judge({"text": head}).level == level


def test_a_selection_is_read_as_experts_write_it() -> None:
    selection = Selection.parse("credibility>=0.5 and relevance >= .6")
    assert selection == Selection(credibility=0.5, relevance=0.6)
    assert str(selection) == "credibility>=0.5 and relevance>=0.6"
    assert Selection.parse(str(selection)) == selection


@pytest.mark.parametrize(
    "text",
    [
        "",
        "relevance>0.5",
        "relevance>=0.5 or credibility>=0.5",
        "relevence>=0.5",
        "relevance>=1.5",
        "relevance>=-1",
        "relevance>=0.5 and relevance>=0.6",
        "relevance>=0.5 and",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="selection"):
        Selection.parse(text)
    with pytest.raises(UserError, match="from 0 to 1"):
        Selection(relevance=1.5)


def scores_of(*values: float) -> dict[str, float]:
    return dict(zip(NAMES, values, strict=True))


def test_the_reason_names_the_first_score_that_fails() -> None:
    selection = Selection(credibility=0.5, relevance=0.6)
    assert selection.reason(scores_of(0.4, 0.1, 0.0)) == "low_credibility"
    assert selection.reason(scores_of(0.5, 0.5, 0.0)) == "low_relevance"
    assert selection.reason(scores_of(0.5, 0.6, 0.0)) is None
    assert Selection(importance=0.1).reason(scores_of(1, 1, 0)) == "low_importance"


SHARES = st.floats(0, 1)


@given(st.tuples(SHARES, SHARES, SHARES), st.tuples(SHARES, SHARES, SHARES), SHARES)
def test_a_higher_minimum_keeps_no_more_and_margins_agree(
    values: tuple[float, float, float], minimums: tuple[float, float, float], raised: float
) -> None:
    scores = scores_of(*values)
    selection = Selection(*minimums)
    stricter = Selection(max(minimums[0], raised), *minimums[1:])
    kept = selection.reason(scores) is None
    assert kept or stricter.reason(scores) is not None
    assert kept == (selection.margin(scores) >= 0)
