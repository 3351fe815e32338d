"""Are two models different on the same items? Intervals, flips, verdicts and their power.

All intervals are two-sided 95 %. Items are paired: both models answered the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from megatron_soaes.errors import UserError

CONFIDENCE = 0.95
Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
RESAMPLES = 9999
MINIMUM_ITEMS = 20
"""With fewer items no verdict is given: a bootstrap of so few is too narrow."""
ABOVE_CHANCE = 10.0
"""Points by which a base must surely beat guessing before what it lost can be measured."""
BATCH_CELLS = 2**22

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval; `high` is infinite where there is no bound."""

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Flips:
    """0/1 outcomes that differ."""

    gained: int
    """Wrong before, right now."""
    lost: int
    """Right before, wrong now."""
    p_value: float
    """McNemar's exact test: both directions are equally likely (McNemar 1947)."""


@dataclass(frozen=True)
class Paired:
    """A new model against a base on the same items."""

    items: int
    base: Interval
    new: Interval
    difference: Interval
    """new - base, in the unit of the scores."""
    ratio: Interval
    """new / base; NaN where the base is zero."""
    deviation: float
    """Standard deviation of the difference on one item, for the power of a verdict."""
    flips: Flips | None
    """None unless outcomes are 0/1."""


class Verdict(StrEnum):
    """What an interval says about a bound."""

    SHOWN = "shown"
    MISSED = "missed"
    NOT_SHOWN = "not shown"
    NOT_MEASURABLE = "not measurable"


def compare_scores(
    base: Sequence[float], new: Sequence[float], weights: Sequence[float] | None, seed: int
) -> Paired:
    """Compare (weighted) means of scores that are not negative.

    Percentile bootstrap of the items, both models' scores drawn together (Efron & Tibshirani 1993,
    section 13.3; Koehn 2004 for paired system comparison).
    """
    w = np.ones(len(base)) if weights is None else np.asarray(weights, dtype=np.float64)
    b, n = np.asarray(base, dtype=np.float64), np.asarray(new, dtype=np.float64)
    columns = np.stack([b * w, n * w, w], axis=1)
    base_sum, new_sum, weight = columns.sum(axis=0)
    resampled = _resampled_sums(columns, seed)
    base_means, new_means = resampled[:, 0] / resampled[:, 2], resampled[:, 1] / resampled[:, 2]
    ratio = new_sum / base_sum if base_sum else math.nan
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = resampled[:, 1] / resampled[:, 0]
    return Paired(
        items=len(b),
        base=_percentiles(base_sum / weight, base_means),
        new=_percentiles(new_sum / weight, new_means),
        difference=_percentiles((new_sum - base_sum) / weight, new_means - base_means),
        ratio=_percentiles(ratio, ratios),
        deviation=float(np.std((n - b) * w / w.mean())),
        flips=None,
    )


def compare_outcomes(base: Sequence[bool], new: Sequence[bool]) -> Paired:
    """Compare two accuracies, in percent.

    Clopper-Pearson interval of each; for the difference the score interval of Tango (1998, Stat Med
    17:891), for the ratio that of Bonett and Price (2006), as Fagerland, Lydersen and Laake advise
    (2014, Stat Med 33:2850). Unlike a bootstrap they keep a width when no outcome differs.
    """
    items = len(base)
    both = sum(b and n for b, n in zip(base, new, strict=True))
    lost, gained = sum(base) - both, sum(new) - both
    p_value = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    # Half a pair in each cell of the 2 x 2 table (Agresti & Min 2005): no flips among few items
    # do not mean that there are none.
    discordance = (gained + lost + 1) / (items + 2)
    return Paired(
        items=items,
        base=accuracy(sum(base), items),
        new=accuracy(sum(new), items),
        difference=_tango(gained, lost, items),
        ratio=_bonett_price(both, gained, lost),
        deviation=100 * math.sqrt(discordance),
        flips=Flips(gained, lost, float(p_value)),
    )


def accuracy(right: int, items: int) -> Interval:
    """Percent right, with the exact interval of Clopper and Pearson (1934)."""
    bounds = stats.binomtest(right, items).proportion_ci(CONFIDENCE, method="exact")
    return Interval(
        100 * right / items, 100 * float(bounds.low), 100 * float(bounds.high), "Clopper-Pearson"
    )


def is_measurable(base: Interval, chance: float) -> bool:
    """Whether the base surely beats guessing by `ABOVE_CHANCE` points, so that it can lose it."""
    return base.low >= chance + ABOVE_CHANCE


def judge(interval: Interval, operator: str, bound: float) -> Verdict:
    """Whether the whole interval keeps `operator bound`, none of it does, or neither is so.

    `operator` is one of <=, >=, <, >.
    """
    low, high = interval.low, interval.high
    if operator.startswith("<"):
        low, high, bound = -high, -low, -bound
    if low > bound or (low == bound and operator.endswith("=")):
        return Verdict.SHOWN
    if high < bound or (high == bound and not operator.endswith("=")):
        return Verdict.MISSED
    return Verdict.NOT_SHOWN


def non_inferiority_power(margin: float, deviation: float, items: int) -> float:
    """The chance that a model truly equal to the base is shown to be within `margin` of it.

    Phi(margin * sqrt(items) / deviation - z), the normal approximation for paired samples (for 0/1
    outcomes Liu et al. 2002, Stat Med 21:231; there deviation is the square root of the share of
    pairs that differ). `margin` and `deviation` have the unit of the scores.
    """
    if deviation == 0:
        return 1.0
    return float(stats.norm.cdf(margin * math.sqrt(items) / deviation - Z))


def across_seeds(values: Sequence[float]) -> Interval:
    """Mean of the same experiment under several seeds, with Student's t interval.

    Raises UserError for fewer than two runs: one run says nothing about the spread.
    """
    _at_least_two(values)
    mean, half = float(np.mean(values)), _t_half_width(values)
    return Interval(mean, mean - half, mean + half, f"Student's t, {len(values)} runs")


def between_seeds(base: Sequence[float], new: Sequence[float]) -> Interval:
    """Difference of means of two experiments with several seeds each (Welch 1947, unpaired).

    Raises UserError for fewer than two runs of either.
    """
    _at_least_two(base)
    _at_least_two(new)
    value = float(np.mean(new) - np.mean(base))
    method = f"Welch's t, {len(base)} and {len(new)} runs"
    if np.ptp(base) == 0 and np.ptp(new) == 0:
        return Interval(value, value, value, method)
    bounds = stats.ttest_ind(new, base, equal_var=False).confidence_interval(CONFIDENCE)
    return Interval(value, float(bounds.low), float(bounds.high), method)


def to_json(record: Any) -> Any:
    """A dataclass as JSON: numbers that are not finite (no bound, undefined) become null."""
    return _finite(asdict(record))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _resampled_sums(columns: Floats, seed: int) -> Floats:
    """Sums of `columns` (items, k) over RESAMPLES draws of as many items: (RESAMPLES, k)."""
    items = len(columns)
    generator = np.random.default_rng(seed)
    batch = max(1, BATCH_CELLS // items)
    sums = []
    for start in range(0, RESAMPLES, batch):
        rows = min(batch, RESAMPLES - start)
        drawn = generator.integers(items, size=(rows, items))
        drawn += items * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * items).reshape(rows, items)
        sums.append(counts.astype(np.float64) @ columns)
    return np.concatenate(sums)


def _percentiles(value: float, resampled: Floats) -> Interval:
    """0/0 counts as the smallest and as the largest ratio, so that it can only widen."""
    tail = (1 - CONFIDENCE) / 2
    unknown = np.isnan(resampled)
    low = np.quantile(np.where(unknown, 0.0, resampled), tail, method="lower")
    high = np.quantile(np.where(unknown, np.inf, resampled), 1 - tail, method="higher")
    return Interval(float(value), float(low), float(high), f"paired bootstrap, {RESAMPLES} draws")


def _tango(gained: int, lost: int, items: int) -> Interval:
    def statistic(delta: float) -> float:
        linear = -gained - lost + (2 * items - gained + lost) * delta
        constant = -lost * delta * (1 - delta)
        # The likeliest share of lost pairs when the difference is delta.
        share = (math.sqrt(linear**2 - 8 * items * constant) - linear) / (4 * items)
        variance = items * (2 * share + delta * (1 - delta))
        return (gained - lost - items * delta) / math.sqrt(max(variance, 1e-300))

    value, edge = (gained - lost) / items, 1 - 1e-12
    low, high = -1.0, 1.0
    if value > -edge:
        low = optimize.brentq(lambda delta: statistic(delta) - Z, -edge, value)
    if value < edge:
        high = optimize.brentq(lambda delta: statistic(delta) + Z, value, edge)
    return Interval(100 * value, 100 * low, 100 * high, "Tango")


def _bonett_price(both: int, gained: int, lost: int) -> Interval:
    """Wilson bounds of each share of the pairs not wrong twice, with z shrunk for the pairing."""
    base, new, pairs = both + lost, both + gained, both + gained + lost
    if pairs == 0:
        return Interval(math.nan, 0.0, math.inf, "Bonett-Price")
    paired = math.sqrt((gained + lost + 2) / ((new + 1) * (base + 1)))
    spread = sum(math.sqrt((1 - (x + 1) / (pairs + 2)) / (x + 1)) for x in (new, base))
    z = Z * paired / spread
    (new_low, new_high), (base_low, base_high) = (_wilson(x, pairs, z) for x in (new, base))
    return Interval(
        new / base if base else math.nan,
        new_low / base_high,
        new_high / base_low if base_low > 0 else math.inf,
        "Bonett-Price",
    )


def _wilson(count: int, total: int, z: float) -> tuple[float, float]:
    half = z * math.sqrt(z**2 + 4 * count * (1 - count / total))
    middle, width = 2 * count + z**2, 2 * (total + z**2)
    return (middle - half) / width, (middle + half) / width


def _t_half_width(values: Sequence[float]) -> float:
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1))
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _at_least_two(values: Sequence[float]) -> None:
    if len(values) < 2:
        raise UserError(
            "runs with different seeds",
            str(len(values)),
            "at least two (three or more give useful intervals)",
            "Run the experiment again with other seeds.",
        )
