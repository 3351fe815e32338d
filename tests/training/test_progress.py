"""What held-out losses say: the best checkpoint, and a source that overfits."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.training.progress import BestCheckpoint, overfitting


def falling(rising: list[float]) -> list[dict[str, float]]:
    """One set with the given losses beside one that gets better all the time."""
    return [{"expert": loss, "general": 3.0 - 0.1 * i} for i, loss in enumerate(rising)]


def test_a_set_that_rises_while_the_others_fall_overfits() -> None:
    found = overfitting(falling([2.0, 1.5, 1.6, 1.75]))
    assert set(found) == {"expert"}
    assert math.isclose(found["expert"], 0.25)


def test_one_rise_is_not_enough() -> None:
    assert overfitting(falling([2.0, 1.5, 1.6])) == {}
    assert overfitting(falling([2.0, 1.6, 1.5, 1.6])) == {}


def test_when_all_get_worse_it_is_no_matter_of_one_source() -> None:
    history = [{"expert": 1.0 + i, "general": 2.0 + i} for i in range(4)]
    assert overfitting(history) == {}


def test_a_single_set_is_judged_by_itself() -> None:
    assert set(overfitting([{"expert": loss} for loss in (1.5, 1.6, 1.7)])) == {"expert"}


@given(st.lists(st.floats(0.1, 10.0) | st.just(math.nan), min_size=1, max_size=12))
def test_the_best_is_the_first_lowest_loss(losses: list[float]) -> None:
    best = None
    for step, loss in enumerate(losses, start=1):
        best = BestCheckpoint.of(step, loss, best)
    finite = [loss for loss in losses if math.isfinite(loss)]
    if finite:
        assert best == BestCheckpoint(losses.index(min(finite)) + 1, min(finite))
    else:
        assert best is None
