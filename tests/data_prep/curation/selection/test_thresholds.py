"""What cut-offs would keep and lose."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.selection.scores import NAMES, Selection
from data_prep.curation.selection.threshold_page import markdown
from data_prep.curation.selection.thresholds import (
    BAND,
    GRID,
    SAMPLES,
    Amount,
    Effect,
    ThresholdReport,
    grid_and,
    threshold_report,
)
from megatron_soaes.errors import UserError


def document(number: int, relevance: float, **fields: Any) -> dict[str, Any]:
    scores = {"credibility": 0.5, "relevance": relevance, "importance": 0.5}
    return {"id": f"d{number}", "text": f"标题{number}\n正文", "scores": scores, **fields}


def effect(report: ThresholdReport, selection: str) -> Effect:
    return next(effect for effect in report.effects if effect.selection == selection)


CORPUS = [
    document(1, 0.9, source="press", language="zh", tokens=10),
    document(2, 0.6, source="press", language="en", tokens=20),
    document(3, 0.57, source="forum", language="zh", tokens=30),
    document(4, 0.1, metadata={"source": "forum", "language": "zh", "tokens": 40}),
]
SIZE = len("标题1\n正文")


def test_documents_characters_and_tokens_are_counted() -> None:
    report = threshold_report(CORPUS, [Selection(relevance=0.6), Selection(relevance=0.95)])
    assert report.all == Amount(4, 4 * SIZE, 100)
    some, none = report.effects
    assert (some.kept, some.share) == (Amount(2, 2 * SIZE, 30), 0.5)
    assert (none.kept, none.share) == (Amount(0, 0, 0), 0.0)


def test_shares_are_told_by_source_and_language() -> None:
    report = threshold_report(CORPUS, [Selection(relevance=0.5)])
    by_source = {share.name: share for share in report.effects[0].by_source}
    assert by_source["press"].share == 1.0
    assert by_source["forum"].kept == Amount(1, SIZE, 30)
    assert by_source["forum"].all == Amount(2, 2 * SIZE, 70)
    shares = [(share.name, share.share) for share in report.effects[0].by_language]
    assert shares == [("zh", pytest.approx(2 / 3)), ("en", 1.0)]


def test_samples_stand_on_both_sides_of_the_cut() -> None:
    found = threshold_report(CORPUS, [Selection(relevance=0.6)]).effects[0]
    above, below = found.just_above, found.just_below
    assert [(sample.id, sample.title, sample.margin) for sample in above] == [("d2", "标题2", 0.0)]
    assert [(sample.id, sample.source, sample.margin) for sample in below] == [
        ("d3", "forum", -0.03)
    ]


def test_a_title_stands_for_its_document() -> None:
    report = threshold_report([document(1, 0.6, title="通知")], [Selection(relevance=0.6)])
    assert report.effects[0].just_above[0].title == "通知"


def test_a_combination_loses_what_any_of_its_scores_fails() -> None:
    combined = Selection(credibility=0.5, relevance=0.6)
    low = document(5, 0.99)
    low["scores"] = {**low["scores"], "credibility": 0.48}
    found = threshold_report([*CORPUS, low], [combined]).effects[0]
    assert found.kept.documents == 2
    assert {sample.id for sample in found.just_below} == {"d3", "d5"}


def test_the_grid_has_every_cut_of_every_score_then_the_combinations() -> None:
    combined = Selection(credibility=0.5, relevance=0.6)
    selections = grid_and([combined])
    assert len(selections) == len(NAMES) * len(GRID) + 1
    assert str(selections[0]) == "credibility>=0.1"
    assert selections[-1] == combined


def test_tokens_are_told_only_where_all_documents_have_them() -> None:
    report = threshold_report([*CORPUS, document(6, 0.2)], [Selection(relevance=0.5)])
    assert report.all.tokens is None
    assert report.effects[0].kept.tokens == 60


@pytest.mark.parametrize("scores", [None, {}, {"credibility": 1, "relevance": "high"}])
def test_documents_without_scores_are_refused(scores: object) -> None:
    with pytest.raises(UserError, match="document d1: scores"):
        threshold_report([{"id": "d1", "text": "", "scores": scores}], [Selection()])


SCORE = st.integers(0, 100).map(lambda percent: percent / 100)
DOCUMENTS = st.lists(
    st.builds(
        lambda number, values, source: {
            "id": str(number),
            "text": "字" * number,
            "source": source,
            "scores": dict(zip(NAMES, values, strict=True)),
        },
        st.integers(0, 50),
        st.tuples(SCORE, SCORE, SCORE),
        st.sampled_from(["a", "b"]),
    ),
    max_size=25,
)


@given(DOCUMENTS, st.randoms(use_true_random=False))
def test_a_higher_cut_keeps_no_more_and_order_does_not_matter(
    documents: list[dict[str, Any]], dice: Any
) -> None:
    selections = grid_and([Selection(0.5, 0.5, 0.5)])
    report = threshold_report(documents, selections)
    for name in NAMES:
        kept = [effect(report, f"{name}>={cut:g}").kept.documents for cut in GRID]
        assert kept == sorted(kept, reverse=True)
    for found in report.effects:
        assert sum(share.kept.documents for share in found.by_source) == found.kept.documents
        assert len(found.just_above) <= SAMPLES
        assert all(0 <= sample.margin <= BAND for sample in found.just_above)
        assert all(-BAND <= sample.margin < 0 for sample in found.just_below)
    shuffled = list(documents)
    dice.shuffle(shuffled)
    assert threshold_report(shuffled, selections) == report


def test_samples_are_not_the_first_documents() -> None:
    many = [document(number, 0.6) for number in range(200)]
    chosen = threshold_report(many, [Selection(relevance=0.6)]).effects[0].just_above
    assert len({sample.id for sample in chosen}) == SAMPLES
    assert {sample.id for sample in chosen} != {f"d{number}" for number in range(SAMPLES)}


def test_the_page_tells_what_is_kept_and_lost() -> None:
    selections = grid_and([Selection(credibility=0.5, relevance=0.6)])
    page = markdown(threshold_report(CORPUS, selections))
    assert f"4 documents, {4 * SIZE} characters, 100 tokens. Nothing has been dropped." in page
    assert f"| relevance>=0.6 | 2 | {2 * SIZE} | 30 | 50.0% |" in page
    assert f"| credibility>=0.5 and relevance>=0.6 | 2 | {2 * SIZE} | 30 | 50.0% |" in page
    assert "| 标题3 | forum | d3 | -0.030 |" in page
    assert "| forum | 2 | 1 | 50.0% |" in page


def test_text_cannot_break_a_table() -> None:
    odd = document(1, 0.6, title="a|b\n<script>", source="x|y")
    page = markdown(threshold_report([odd], [Selection(relevance=0.6)]))
    assert "| a\\|b &lt;script> | x\\|y | d1 | +0.000 |" in page


def test_a_page_shows_the_largest_sources() -> None:
    many = [document(number, 0.6, source=f"s{number}") for number in range(40)]
    assert "| 25 more, in the JSON | | | |" in markdown(
        threshold_report(many, [Selection(relevance=0.6)])
    )
