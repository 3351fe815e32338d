"""How well scores tell relevant texts from others: precision, recall, F1 and AUC with intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

DRAWS = 2000
INTERVAL = (0.025, 0.975)
THRESHOLDS = tuple(step / 10 for step in range(1, 10))
DECISION = 0.5
"""The threshold that precision, recall and F1 are told for."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; `value` is None where it is undefined (0/0)."""

    value: float | None
    low: float
    high: float

    def __str__(self) -> str:
        value = "undefined" if self.value is None else f"{self.value:.3f}"
        return f"{value} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Confusion:
    """Texts by label and by whether their score reaches a threshold."""

    threshold: float
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@dataclass(frozen=True)
class Quality:
    """What scores are worth on labelled texts."""

    relevant: int
    irrelevant: int
    precision: Estimate
    recall: Estimate
    f1: Estimate
    auc: Estimate
    table: tuple[Confusion, ...]
    method: str

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def assess(relevant: Labels, scores: Floats, seed: int) -> Quality:
    """Compare labels with scores, both [texts]; both labels must occur.

    Intervals are percentiles of a bootstrap over texts. For precision, recall and F1 (at
    `DECISION`) each cell of the confusion table gets half a text more, so that a few texts without
    a mistake do not count as proof that there is none; an AUC of 1 has no such width.
    """
    generator = np.random.default_rng(seed)
    decided = confusion(relevant, scores, DECISION)
    cells = np.array([decided.true_positive, decided.false_positive, decided.false_negative])
    smoothed = np.append(cells, decided.true_negative) + 0.5
    drawn = generator.multinomial(len(scores), smoothed / smoothed.sum(), size=DRAWS)
    precision, recall, f1 = (
        _estimate(value, draws)
        for value, draws in zip(_rates(cells), _rates(drawn.T[:3]), strict=True)
    )
    return Quality(
        relevant=int(relevant.sum()),
        irrelevant=int((~relevant).sum()),
        precision=precision,
        recall=recall,
        f1=f1,
        auc=_auc(relevant, scores, generator),
        table=tuple(confusion(relevant, scores, threshold) for threshold in THRESHOLDS),
        method=f"95 % bootstrap intervals over texts, {DRAWS} draws, seed {seed}",
    )


def confusion(relevant: Labels, scores: Floats, threshold: float) -> Confusion:
    """Count texts; a score equal to the threshold reaches it."""
    kept = scores >= threshold
    return Confusion(
        threshold,
        int((kept & relevant).sum()),
        int((kept & ~relevant).sum()),
        int((~kept & relevant).sum()),
        int((~kept & ~relevant).sum()),
    )


def describe(quality: Quality) -> list[str]:
    """The figures in words, a line each, and the confusion table."""
    lines = [
        f"{quality.relevant} relevant and {quality.irrelevant} irrelevant texts",
        f"At {DECISION}: precision {quality.precision}, recall {quality.recall}, F1 {quality.f1}",
        f"AUC {quality.auc}",
        f"({quality.method})",
        "cut-off  kept right  kept wrong  lost  dropped right",
    ]
    lines += [
        f"{row.threshold:7.1f}  {row.true_positive:10}  {row.false_positive:10}"
        f"  {row.false_negative:4}  {row.true_negative:13}"
        for row in quality.table
    ]
    return lines


def _rates(cells: npt.NDArray[Any]) -> Floats:
    """Precision, recall and F1, [3, ...], of true positives, false positives, false negatives."""
    hits, wrong, lost = cells.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.array([hits / (hits + wrong), hits / (hits + lost), hits / _f1_base(cells)])


def _f1_base(cells: npt.NDArray[Any]) -> Floats:
    base: Floats = cells[0] + (cells[1] + cells[2]) / 2
    return base


def _auc(relevant: Labels, scores: Floats, generator: np.random.Generator) -> Estimate:
    """P(a relevant text scores higher than another one), ties half (Hanley & McNeil 1982)."""
    _, rank = np.unique(scores, return_inverse=True)
    levels = int(rank.max()) + 1
    high = np.bincount(rank[relevant], minlength=levels)
    low = np.bincount(rank[~relevant], minlength=levels)
    draws = np.array(
        [
            _auc_of(*(generator.multinomial(side.sum(), side / side.sum()) for side in (high, low)))
            for _ in range(DRAWS)
        ]
    )
    return _estimate(_auc_of(high, low), draws)


def _auc_of(high: npt.NDArray[np.int64], low: npt.NDArray[np.int64]) -> float:
    """From the number of relevant and of other texts at each distinct score, rising."""
    beaten = np.cumsum(low) - low / 2
    return float((high * beaten).sum() / (high.sum() * low.sum()))


def _estimate(value: float, draws: Floats) -> Estimate:
    low, high = np.nanquantile(draws, INTERVAL)
    return Estimate(None if np.isnan(value) else float(value), float(low), float(high))
