"""Intervals, flips, verdicts and power."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from megatron_soaes.errors import UserError
from megatron_soaes.evaluation import statistics
from megatron_soaes.evaluation.statistics import (
    Interval,
    Verdict,
    across_seeds,
    between_seeds,
    compare_outcomes,
    compare_scores,
    is_measurable,
    judge,
    non_inferiority_power,
    to_json,
)

Z = 1.959963984540054


def test_the_bootstrap_is_scipys_paired_percentile_bootstrap() -> None:
    rng = np.random.default_rng(3)
    base = rng.uniform(20, 80, 150)
    new = base * 1.05 + rng.normal(0, 5, 150)

    found = compare_scores(list(base), list(new), None, seed=1)

    def ratio(b: np.ndarray, n: np.ndarray, axis: int) -> np.ndarray:
        return n.mean(axis=axis) / b.mean(axis=axis)

    reference = stats.bootstrap(
        (base, new), ratio, paired=True, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    width = reference.high - reference.low
    assert found.ratio.value == pytest.approx(new.mean() / base.mean())
    assert found.ratio.low == pytest.approx(reference.low, abs=0.1 * width)
    assert found.ratio.high == pytest.approx(reference.high, abs=0.1 * width)
    assert found.difference.value == pytest.approx(new.mean() - base.mean())


def test_weights_make_the_ratio_one_of_totals() -> None:
    bits_a, bits_b, sizes = [900.0, 100.0], [450.0, 200.0], [300.0, 100.0]
    per_byte = [[b / s for b, s in zip(bits, sizes, strict=True)] for bits in (bits_a, bits_b)]

    found = compare_scores(*per_byte, sizes, seed=1)

    assert found.base.value == pytest.approx(1000 / 400)
    assert found.ratio.value == pytest.approx(650 / 1000)


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(2)
    base, new = rng.uniform(size=(2, 30)).tolist()
    assert compare_scores(base, new, None, 5) == compare_scores(base, new, None, 5)
    assert compare_scores(base, new, None, 5) != compare_scores(base, new, None, 6)


def test_a_base_of_zero_has_no_ratio_and_no_bound() -> None:
    found = compare_scores([0.0, 0.0], [1.0, 0.0], None, seed=1)
    assert math.isnan(found.ratio.value)
    assert (found.ratio.low, found.ratio.high) == (0.0, math.inf)
    assert json.loads(json.dumps(to_json(found)))["ratio"]["high"] is None


PERCENT = st.integers(0, 10_000).map(lambda hundredths: hundredths / 100)
"""Scores as they are reported; a base of 1e-308 has no ratio that a float holds."""


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(PERCENT, PERCENT), min_size=2, max_size=40),
    seed=st.integers(0, 2**32),
)
def test_intervals_contain_the_estimate_and_do_not_depend_on_the_order(
    pairs: list[tuple[float, float]], seed: int
) -> None:
    base, new = [b for b, _ in pairs], [n for _, n in pairs]
    found = compare_scores(base, new, None, seed)
    turned = compare_scores(base[::-1], new[::-1], None, seed)

    for interval in (found.base, found.new, found.difference, found.ratio):
        if not math.isnan(interval.value):
            slack = 1e-9 * (1 + abs(interval.value))
            assert interval.low - slack <= interval.value <= interval.high + slack
    assert turned.difference.value == pytest.approx(found.difference.value, abs=1e-9)
    assert turned.deviation == pytest.approx(found.deviation, abs=1e-9)


def outcomes(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    base = [True] * both + [False] * gained + [True] * lost + [False] * neither
    new = [True] * (both + gained) + [False] * (lost + neither)
    return base, new


def test_flips_are_counted_in_both_directions_and_tested_exactly() -> None:
    found = compare_outcomes(*outcomes(50, 3, 12, 35))

    assert found.flips is not None
    assert (found.flips.gained, found.flips.lost) == (3, 12)
    tail = sum(math.comb(15, k) for k in range(4)) / 2**15
    assert found.flips.p_value == pytest.approx(2 * tail)
    assert (found.base.value, found.new.value) == (62, 53)
    assert found.difference.value == pytest.approx(-9)
    assert found.deviation == pytest.approx(100 * math.sqrt(16 / 102))
    assert found.ratio.value == pytest.approx(53 / 62)


def test_accuracies_have_clopper_pearson_bounds() -> None:
    found = statistics.accuracy(8, 10)
    assert found.low == pytest.approx(100 * stats.beta.ppf(0.025, 8, 3))
    assert found.high == pytest.approx(100 * stats.beta.ppf(0.975, 9, 2))


def test_no_flip_still_leaves_a_width() -> None:
    found = compare_outcomes(*outcomes(80, 0, 0, 20))

    assert found.flips is not None and found.flips.p_value == 1
    # Tango with no pair that differs: delta / (1 - delta) = z^2 / n
    assert found.difference.high == pytest.approx(100 * Z**2 / (100 + Z**2))
    assert found.difference.low == pytest.approx(-found.difference.high)
    assert found.ratio.low < 1 < found.ratio.high


@pytest.mark.parametrize("table", [(50, 3, 12, 35), (1, 1, 7, 12), (0, 5, 0, 5), (9, 0, 4, 1)])
def test_the_bounds_of_the_difference_are_where_the_score_test_rejects(
    table: tuple[int, int, int, int],
) -> None:
    _, gained, lost, _ = table
    items = sum(table)
    found = compare_outcomes(*outcomes(*table)).difference

    def likelihood(share_lost: float, delta: float) -> float:
        share_gained = share_lost + delta
        rest = 1 - share_lost - share_gained
        if min(share_gained, share_lost, rest) < -1e-12:
            return -math.inf
        parts = ((gained, share_gained), (lost, share_lost), (items - gained - lost, rest))
        return sum(n * math.log(max(share, 1e-300)) for n, share in parts if n)

    for bound, sign in ((found.low, 1), (found.high, -1)):
        delta = bound / 100
        best = optimize.minimize_scalar(
            lambda share, delta=delta: -likelihood(share, delta),
            bounds=(max(0.0, -delta), (1 - delta) / 2),
            method="bounded",
            options={"xatol": 1e-12},
        ).x
        variance = items * (2 * best + delta - delta**2)
        statistic = (gained - lost - items * delta) / math.sqrt(variance)
        assert statistic == pytest.approx(sign * Z, abs=1e-3)


def test_bonett_price_as_published_for_the_ratio_of_paired_shares() -> None:
    # Wilson bounds at the shrunken z, written out for both 8 and 2 of 9 pairs.
    found = compare_outcomes(*outcomes(1, 1, 7, 12)).ratio
    spread = math.sqrt((1 - 3 / 11) / 3) + math.sqrt((1 - 9 / 11) / 9)
    z = Z * math.sqrt(10 / 27) / spread
    wilson = [
        stats.binomtest(k, 9).proportion_ci(2 * stats.norm.cdf(z) - 1, "wilson") for k in (2, 8)
    ]
    assert found.low == pytest.approx(wilson[0].low / wilson[1].high)
    assert found.high == pytest.approx(wilson[0].high / wilson[1].low)


@settings(max_examples=100, deadline=None)
@given(table=st.tuples(*[st.integers(0, 30)] * 4).filter(lambda t: sum(t) > 0))
def test_intervals_of_outcomes_contain_the_estimate_and_turn_with_the_models(
    table: tuple[int, int, int, int],
) -> None:
    both, gained, lost, neither = table
    found = compare_outcomes(*outcomes(both, gained, lost, neither))
    turned = compare_outcomes(*outcomes(both, lost, gained, neither))

    assert found.difference.low - 1e-9 <= found.difference.value <= found.difference.high + 1e-9
    assert turned.difference.low == pytest.approx(-found.difference.high, abs=1e-6)
    if not math.isnan(found.ratio.value):
        assert found.ratio.low - 1e-9 <= found.ratio.value <= found.ratio.high + 1e-9


@pytest.mark.parametrize(
    ("low", "high", "operator", "verdict"),
    [
        (1.09, 1.2, ">=", Verdict.SHOWN),
        (1.0, 1.2, ">=", Verdict.NOT_SHOWN),
        (1.0, 1.07, ">=", Verdict.MISSED),
        (1.08, 1.2, ">=", Verdict.SHOWN),
        (1.08, 1.2, ">", Verdict.NOT_SHOWN),
        (1.0, 1.08, ">", Verdict.MISSED),
        (1.0, 1.07, "<=", Verdict.SHOWN),
        (1.09, 1.2, "<=", Verdict.MISSED),
        (1.0, 1.2, "<", Verdict.NOT_SHOWN),
    ],
)
def test_a_target_inside_the_interval_is_not_shown(
    low: float, high: float, operator: str, verdict: Verdict
) -> None:
    assert judge(Interval((low + high) / 2, low, high, ""), operator, 1.08) is verdict


def test_a_suite_that_the_base_guesses_measures_nothing() -> None:
    assert is_measurable(statistics.accuracy(50, 100), chance=25)
    assert not is_measurable(statistics.accuracy(40, 100), chance=25)  # surely above 30 only
    assert is_measurable(statistics.accuracy(400, 1000), chance=25)


def test_power_is_the_share_of_equal_models_that_pass() -> None:
    items, discordance, margin = 400, 0.1, 4.0
    stated = non_inferiority_power(margin, 100 * math.sqrt(discordance), items)
    rng = np.random.default_rng(11)
    shares = [0.5, discordance / 2, discordance / 2, 0.5 - discordance]
    tables = rng.multinomial(items, shares, size=300)
    passed = [compare_outcomes(*outcomes(*table)).difference.low > -margin for table in tables]
    assert stated == pytest.approx(float(stats.norm.cdf(4 * 20 / (100 * math.sqrt(0.1)) - Z)))
    assert np.mean(passed) == pytest.approx(stated, abs=0.08)


def test_power_grows_with_items_and_is_sure_where_nothing_varies() -> None:
    powers = [non_inferiority_power(2, 30, items) for items in (50, 500, 5000)]
    assert powers == sorted(powers) and powers[0] < 0.1 and powers[-1] > 0.9
    assert non_inferiority_power(2, 0, 50) == 1


@pytest.mark.parametrize("better", [-0.08, 0.0, 0.08])
def test_simulated_models_are_told_apart_only_where_they_differ(better: float) -> None:
    rng = np.random.default_rng(17)
    below = above = 0
    for _ in range(100):
        hard = rng.uniform(size=800)
        base, new = (hard + rng.normal(0, 0.1, 800) < 0.6 + shift for shift in (0, better))
        difference = compare_outcomes(base.tolist(), new.tolist()).difference
        below += difference.high < 0
        above += difference.low > 0
    if better < 0:
        assert below > 90 and above == 0
    elif better > 0:
        assert above > 90 and below == 0
    else:
        assert below + above <= 12


def test_simulated_scores_are_covered() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(60):
        base = rng.uniform(10, 90, 120)
        new = base * rng.uniform(0.8, 1.2, 120)
        ratio = compare_scores(list(base), list(new), None, seed).ratio
        covered += ratio.low <= 1.0 <= ratio.high
    assert covered >= 52


def test_seeds_have_a_t_interval() -> None:
    found = across_seeds([50.0, 52.0, 54.0])
    half = 4.302652729911275 * 2 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((52, 52 - half, 52 + half))


def test_two_experiments_with_seeds_are_compared_with_welch() -> None:
    base, new = [50.0, 52.0, 54.0], [57.0, 58.0, 60.0]
    found = between_seeds(base, new)
    reference = stats.ttest_ind(new, base, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert between_seeds([1.0, 1.0], [2.0, 2.0]).low == 1


def test_one_seed_says_nothing_about_the_spread() -> None:
    with pytest.raises(UserError, match="at least two"):
        across_seeds([50.0])
    with pytest.raises(UserError, match="at least two"):
        between_seeds([50.0, 51.0], [50.0])
