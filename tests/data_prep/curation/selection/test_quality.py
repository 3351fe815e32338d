"""Figures of a classifier, with intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.curation.selection.quality import assess, confusion, describe

RELEVANT = np.array([True, True, True, False, False])
SCORES = np.array([0.9, 0.6, 0.3, 0.5, 0.1])


def test_figures_of_a_small_table() -> None:
    quality = assess(RELEVANT, SCORES, seed=1)
    assert quality.precision.value == pytest.approx(2 / 3)
    assert quality.recall.value == pytest.approx(2 / 3)
    assert quality.f1.value == pytest.approx(2 / 3)
    assert quality.auc.value == pytest.approx(5 / 6)


def test_a_tie_is_half_a_win() -> None:
    assert assess(np.array([True, False]), np.array([0.5, 0.5]), seed=1).auc.value == 0.5


def test_a_score_at_the_threshold_reaches_it() -> None:
    found = confusion(RELEVANT, SCORES, 0.5)
    counts = (found.true_positive, found.false_positive, found.false_negative, found.true_negative)
    assert counts == (2, 1, 1, 1)


def test_precision_of_nothing_kept_is_undefined() -> None:
    quality = assess(RELEVANT, SCORES / 10, seed=1)
    assert quality.precision.value is None
    assert quality.recall.value == 0.0
    assert "undefined" in "\n".join(describe(quality))


def test_no_mistake_among_few_texts_is_no_proof() -> None:
    few = assess(np.arange(20) < 10, 1 - np.arange(20) / 19, seed=1)
    many = assess(np.arange(2000) < 1000, 1 - np.arange(2000) / 1999, seed=1)
    assert few.precision.value == many.precision.value == 1.0
    assert few.precision.low < 0.9
    assert many.precision.low > 0.99


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        relevant = generator.random(150) < 0.5
        scores = np.where(generator.random(150) < 0.8, relevant, ~relevant).astype(float)
        recall = assess(relevant, scores, seed).recall
        covered += recall.low <= 0.8 <= recall.high
    assert covered >= 34


@settings(max_examples=25)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=2, max_size=30))
def test_figures_lie_between_0_and_1_and_table_rows_add_up(rows: list[tuple[bool, float]]) -> None:
    relevant = np.array([True, False, *(label for label, _ in rows)])
    scores = np.array([0.7, 0.2, *(score for _, score in rows)])
    quality = assess(relevant, scores, seed=3)
    for figure in (quality.precision, quality.recall, quality.f1, quality.auc):
        assert 0 <= figure.low <= figure.high <= 1
        assert figure.value is None or 0 <= figure.value <= 1
    for row in quality.table:
        assert row.true_positive + row.false_negative == quality.relevant
        assert row.false_positive + row.true_negative == quality.irrelevant
    reached = [row.true_positive for row in quality.table]
    assert reached == sorted(reached, reverse=True)
