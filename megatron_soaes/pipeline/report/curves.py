"""Loss curves of the training stages, as far as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_soaes.recipe.graph import steps_of
from megatron_soaes.recipe.schema import Recipe, TrainingStage
from megatron_soaes.training.progress import BestCheckpoint
from megatron_soaes.training.records import METRICS_FILE, read_records

MOST_POINTS = 300
"""Points of a training loss; each is the mean of as many steps as that takes."""

Point = tuple[int, float]
"""Step and loss in nats a token."""


@dataclass(frozen=True)
class HeldOut:
    """The losses of one held-out set."""

    name: str
    tokens: int
    """So many trained tokens every loss is the mean of."""
    losses: list[Point]


@dataclass(frozen=True)
class Curve:
    """One training stage."""

    stage: str
    kind: str
    model: str
    step: int
    steps: int | None
    """As planned; None where passes over data decide."""
    steps_a_point: int
    loss: list[Point]
    """Mean training loss, each at the last of its steps."""
    not_finite: int
    """Steps left out of the means, since their loss was NaN or infinite."""
    held_out: list[HeldOut]
    best: BestCheckpoint | None
    best_of: str | None
    """The set whose lowest loss marks the best checkpoint."""
    overfitting: dict[str, float]
    """Sets that the last warning named, with nats above their lowest loss."""


def read_curves(recipe: Recipe) -> list[Curve]:
    """Every training stage that has told of a step or a validation."""
    stages = [one for one in recipe.stages if isinstance(one, TrainingStage)]
    found = [(stage, recipe.workdir / stage.name / METRICS_FILE) for stage in stages]
    curves = [_curve(recipe, stage, file) for stage, file in found if file.exists()]
    return [curve for curve in curves if curve.loss or curve.held_out]


def validations(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The figures of each validation by set, oldest first."""
    return [record["validation"] for record in records if "validation" in record]


def _curve(recipe: Recipe, stage: TrainingStage, file: Path) -> Curve:
    records = read_records(file)
    trained = [(int(one["step"]), float(one["loss"])) for one in records if "loss" in one]
    finite = [point for point in trained if math.isfinite(point[1])]
    steps_a_point = max(1, math.ceil(len(finite) / MOST_POINTS))
    held_out = _held_out(records)
    decides = stage.validation.best
    best = None
    for one in held_out:
        for step, loss in one.losses if one.name == decides else ():
            best = BestCheckpoint.of(step, loss, best)
    warnings = [one for one in records if "overfitting" in one]
    return Curve(
        stage=stage.name,
        kind=str(getattr(stage, "kind", "")),
        model=stage.model,
        step=trained[-1][0] if trained else 0,
        steps=steps_of(recipe, stage),
        steps_a_point=steps_a_point,
        loss=_means(finite, steps_a_point),
        not_finite=len(trained) - len(finite),
        held_out=held_out,
        best=best,
        best_of=decides,
        overfitting=warnings[-1]["overfitting"] if warnings else {},
    )


def _means(points: Sequence[Point], number: int) -> list[Point]:
    """The mean of each `number` points, at the last of them."""
    parts = [points[start : start + number] for start in range(0, len(points), number)]
    return [(part[-1][0], math.fsum(loss for _, loss in part) / len(part)) for part in parts]


def _held_out(records: Sequence[Mapping[str, Any]]) -> list[HeldOut]:
    losses: dict[str, list[Point]] = {}
    tokens: dict[str, int] = {}
    for record in records:
        for name, figures in record.get("validation", {}).items():
            losses.setdefault(name, []).append((int(record["step"]), float(figures["loss"])))
            tokens[name] = int(figures["tokens"])
    return [HeldOut(name, tokens[name], points) for name, points in losses.items()]
