"""The figures of the report, from its data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from megatron_soaes.evaluation.statistics import Interval
from megatron_soaes.pipeline.report.corpus import Tokens
from megatron_soaes.pipeline.report.curves import Curve
from megatron_soaes.pipeline.report.drafts import Acceptance, Speed
from megatron_soaes.pipeline.report.measures import MeasureRow
from megatron_soaes.pipeline.report.plots import (
    Bar,
    Dot,
    Series,
    bars,
    estimates,
    lines,
)
from megatron_soaes.pipeline.report.svg import COLOURS, colour

PERCENT = "%"
STEP, LOSS = "optimizer step", "loss, nats a token"


def loss_curve(curve: Curve) -> Markup:
    """Training loss and held-out losses of a stage, its best checkpoint ringed."""
    series = [Series("training", curve.loss, "quiet")] if curve.loss else []
    for number, one in enumerate(curve.held_out[:COLOURS]):
        finite = [point for point in one.losses if math.isfinite(point[1])]
        if finite:
            series.append(Series(one.name, finite, colour(number), dots=True))
    if not series:
        return Markup()
    best = curve.best
    says = f"best by {curve.best_of}: step {best.iteration}" if best else ""
    marked = (best.iteration, best.loss, says) if best else None
    return lines(series, STEP, LOSS, marked=marked)


def measured(rows: Sequence[MeasureRow], checkpoints: Sequence[str]) -> Markup:
    """The percentages of whole suites, each checkpoint in its colour."""
    colours = {name: colour(number) for number, name in enumerate(checkpoints)}
    drawn = []
    for row in rows:
        if row.unit == PERCENT and not row.is_part:
            dots = [
                Dot(one.checkpoint, e.value, e.low, e.high, colours[one.checkpoint])
                for one in row.values
                if (e := one.estimate).value is not None
                and e.low is not None
                and e.high is not None
            ]
            drawn.append((f"{row.suite} {row.measure}", dots))
    drawn = [row for row in drawn if row[1]]
    return estimates(drawn, PERCENT) if drawn else Markup()


def tokens_per_pass(one: Acceptance) -> Markup:
    """Tokens a pass by draft length, before and after."""
    series = [
        Series(name, list(enumerate(figures.tokens_per_pass, start=1)), css, dashed, dots=True)
        for name, figures, css, dashed in (
            ("before distillation", one.before, "quiet", True),
            ("after", one.after, "c0", False),
        )
    ]
    return lines(series, "draft length, tokens", "tokens a pass of the target", from_zero=True)


def speedups(one: Speed) -> Markup:
    """Measured speedup with its interval, and the ideal one, by draft length."""
    fixed = [row for row in one.rows if not row.adaptive]
    found = [_speed("measured, 95 % interval", [(n.draft_length, n.speedup) for n in fixed], "c0")]
    if one.exact:
        in_mode = [(row.draft_length, row.speedup_in_mode) for row in fixed]
        found.append(_speed("over plain decoding in exact mode", in_mode, "c1"))
    ideal = [(row.draft_length, row.ideal) for row in fixed if row.ideal is not None]
    if ideal:
        name = "ideal, in exact mode" if one.exact else "ideal"
        found.append(Series(name, ideal, "quiet", dashed=True, dots=True))
    title = "times as fast as plain decoding"
    return lines(found, "draft length, tokens", title, at=1.0, from_zero=True)


def _speed(name: str, found: Sequence[tuple[int, Interval]], css: str) -> Series:
    points = [(length, one.value) for length, one in found]
    intervals = [(one.low, one.high) for _, one in found]
    return Series(name, points, css, dots=True, intervals=intervals)


def token_bars(rows: Sequence[Tokens]) -> Markup:
    """Tokens of each dataset, and how many of them are in the loss."""
    return bars(
        [Bar(row.dataset, row.tokens, row.trained_tokens) for row in rows], "tokens", "in the loss"
    )
