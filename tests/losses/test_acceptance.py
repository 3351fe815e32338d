"""What an acceptance rate is worth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.losses.acceptance import (
    best_draft_length,
    best_draft_length_by_position,
    expected_tokens,
    expected_tokens_by_position,
    ideal_speedup,
)

RATES = st.floats(0.0, 0.999)


@given(RATES, st.integers(0, 12))
def test_constant_rate_is_the_closed_form(rate: float, length: int) -> None:
    closed = (1 - rate ** (length + 1)) / (1 - rate)
    assert expected_tokens(rate, length) == pytest.approx(closed)


@given(st.integers(0, 12))
def test_extremes(length: int) -> None:
    assert expected_tokens(1.0, length) == length + 1
    assert expected_tokens(0.0, length) == 1


def test_by_position_is_what_a_simulation_gives() -> None:
    rates = [0.9, 0.6, 0.7]
    accepted = np.random.default_rng(0).random((200_000, 3)) < rates
    simulated = 1 + np.cumprod(accepted, axis=1).sum(1)
    error = simulated.std() / len(simulated) ** 0.5
    assert abs(simulated.mean() - expected_tokens_by_position(rates)) < 4 * error


def test_speedup_of_a_worked_example() -> None:
    # 1 + 0.8 + 0.64 + 0.512 tokens for three drafts at a tenth of the target's time each.
    assert ideal_speedup(expected_tokens(0.8, 3), 3, 0.1) == pytest.approx(2.952 / 1.3)


@given(RATES, st.floats(0.01, 1.0))
def test_best_length_is_not_beaten(rate: float, cost: float) -> None:
    best = best_draft_length(rate, cost, 20)
    speedups = [ideal_speedup(expected_tokens(rate, k), k, cost) for k in range(21)]
    assert speedups[best] == max(speedups)
    # Corollary 3.9: a draft helps exactly when it is accepted more often than it costs.
    if abs(rate - cost) > 1e-6:
        assert (best > 0) == (rate > cost)


def test_a_decaying_rate_shortens_the_draft() -> None:
    decaying = [0.917, 0.837, 0.648, 0.538, 0.451, 0.348]
    assert best_draft_length_by_position(decaying, 0.1) < best_draft_length(0.917, 0.1, 6)
    assert best_draft_length_by_position([], 0.1) == 0
