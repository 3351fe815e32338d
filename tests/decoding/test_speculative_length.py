"""The arithmetic of gain and cost, counted acceptance, and a draft length that follows both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.decoding.draft_length import (
    AdaptiveLength,
    FixedLength,
    PassCosts,
    Round,
    acceptance_of,
    break_even,
)
from megatron_soaes.decoding.measure import Timed, speedup
from megatron_soaes.losses.acceptance import expected_tokens, ideal_speedup

acceptances = st.floats(0, 0.999)
lengths = st.integers(1, 8)
FLAT = PassCosts(0.05, (1.0, 1.1, 1.1, 1.1, 1.1, 1.15, 1.15, 1.2))
"""A draft of a twentieth of the target's time; judging a few tokens costs little more."""


@given(acceptances, lengths, st.floats(0.01, 2))
def test_with_judging_at_one_pass_the_expected_speedup_is_the_ideal(
    acceptance: float, length: int, draft: float
) -> None:
    costs = PassCosts(draft, (1.0,) * 9)
    ideal = ideal_speedup(expected_tokens(acceptance, length), length, draft)
    assert costs.speedup(acceptance, length) == pytest.approx(ideal)


@given(st.integers(1, 7))
def test_at_the_break_even_acceptance_nothing_is_won(length: int) -> None:
    acceptance = break_even(FLAT, length)
    assert acceptance is not None
    assert FLAT.speedup(acceptance, length) == pytest.approx(1)


def test_a_draft_that_always_costs_time_has_no_break_even() -> None:
    assert break_even(PassCosts(1.0, (1.0, 2.0)), 1) is None


def test_more_acceptance_makes_longer_drafts_best() -> None:
    best = [FLAT.best_length(acceptance) for acceptance in (0.05, 0.5, 0.7, 0.9, 0.99)]
    assert best == sorted(best)
    assert best[0] == 0
    assert best[-1] == FLAT.longest


def test_a_fixed_length_does_not_learn() -> None:
    policy = FixedLength(3)
    policy.learn(4, 0)
    assert policy.next() == 3


def test_an_adaptive_length_grows_with_acceptance_and_switches_off_without() -> None:
    policy = AdaptiveLength(FLAT)
    for _ in range(30):
        drafted = policy.next()
        policy.learn(drafted, drafted)
    assert policy.next() == FLAT.longest
    passes = 0
    while policy.next() > 0:
        policy.learn(1, 0)
        passes += 1
    assert 10 < passes < 500


def test_while_it_is_off_it_looks_again_and_recovers() -> None:
    policy = AdaptiveLength(FLAT)
    while policy.next() > 0:
        policy.learn(1, 0)
    drafted = []
    for _ in range(200 * AdaptiveLength.PROBE_EVERY):
        drafted.append(policy.next())
        policy.learn(drafted[-1], drafted[-1])
    assert drafted[: AdaptiveLength.PROBE_EVERY - 1].count(1) == 1
    assert drafted[-1] == FLAT.longest


def test_costs_that_never_pay_keep_it_off() -> None:
    assert AdaptiveLength(PassCosts(3.0, (1.0, 1.5, 2.0))).next() == 0


def test_acceptance_has_two_rates_and_two_lengths() -> None:
    rounds = [Round(4, 4, 4, 5), Round(4, 2, 1, 2), Round(2, 1, 0, 1), Round(0, 0, 0, 1)]
    found = acceptance_of(rounds)
    assert found.acceptance_rate == 5 / 10
    assert found.acceptance_of_judged == 5 / 7
    assert found.acceptance_length_without_bonus == 5 / 4
    assert found.acceptance_length_with_bonus == 9 / 4
    assert found.by_position == (2 / 3, 1 / 3, 1 / 2, 1 / 2)
    assert found.target_passes == 4


def test_without_drafts_there_is_no_acceptance() -> None:
    found = acceptance_of([Round(0, 0, 0, 1)])
    assert (found.acceptance_rate, found.by_position) == (0, ())


def timed(seconds: list[list[float]], tokens: list[float]) -> Timed:
    return Timed([], np.array(seconds), np.array(tokens))


def test_a_speedup_is_the_ratio_of_seconds_a_token() -> None:
    plain = timed([[2.0, 4.0], [2.0, 4.0]], [10, 20])
    other = timed([[1.0, 2.0], [1.0, 2.0]], [10, 20])
    found = speedup(plain, other)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


def test_texts_of_other_lengths_are_compared_by_the_token() -> None:
    found = speedup(timed([[2.0]], [20]), timed([[1.0]], [10]))
    assert found.value == pytest.approx(1)


def test_an_interval_covers_what_varies_between_prompts_and_between_repeats() -> None:
    random = np.random.default_rng(0)
    noisy = random.uniform(0.5, 1.5, (3, 20)).tolist()
    steady = [[1.0] * 20] * 3
    found = speedup(timed(steady, [10] * 20), timed(noisy, [10] * 20))
    assert found.low < 1 < found.high
    assert 0.05 < found.high - found.low < 0.5
    one_prompt = speedup(timed([[1.0], [1.0], [1.0]], [5]), timed([[1.0], [2.0], [3.0]], [5]))
    assert one_prompt.low < 0.6 < one_prompt.high
