"""What the evaluation stages measured, each number with its 95 % interval."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_soaes.evaluation import statistics
from megatron_soaes.evaluation.compare import compare
from megatron_soaes.evaluation.result import EvaluationResult, Measure, read_result
from megatron_soaes.evaluation.statistics import Interval
from megatron_soaes.pipeline.manifest import Manifest
from megatron_soaes.recipe.graph import stage_of
from megatron_soaes.recipe.schema import EvaluateStage, Recipe, SingleStage

COMPARISON = "comparison.json"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; None where it is undefined or has no bound."""

    value: float | None
    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True)
class Value:
    """A measure of one checkpoint."""

    checkpoint: str
    estimate: Estimate
    ratio: Estimate | None
    """To the first checkpoint, item by item; None for the first itself."""
    change: str | None
    """What the interval of the difference to the first says: better, worse, or nothing shown."""


@dataclass(frozen=True)
class MeasureRow:
    """One measure of every checkpoint."""

    suite: str
    """`name`, or `name[source]` for a part of it."""
    measure: str
    """`profile.metric`."""
    unit: str
    higher_is_better: bool
    items: int
    values: list[Value]

    @property
    def is_part(self) -> bool:
        """Whether it is of a part of a suite."""
        return self.suite.endswith("]")


@dataclass(frozen=True)
class HeldOutRow:
    """A held-out set measured on one checkpoint."""

    held_out: str
    checkpoint: str
    loss: float
    """Nats a token."""
    perplexity: float
    tokens: int


@dataclass(frozen=True)
class Control:
    """The last stage of a curriculum against its single-stage control, item by item."""

    control: str
    staged: str
    rows: list[MeasureRow]
    """Whole suites, the control first."""


@dataclass(frozen=True)
class TargetEntry:
    """A target of the recipe for one measure of one checkpoint."""

    target: str
    path: str
    """The full name of the measure."""
    checkpoint: str
    estimate: Estimate
    """Of the ratio, or of the difference where the target is in points."""
    verdict: str


@dataclass(frozen=True)
class Evaluation:
    """One evaluation stage."""

    stage: str
    model: str
    checkpoints: list[str]
    profiles: dict[str, str]
    """What each profile of the measures means."""
    rows: list[MeasureRow]
    held_out: list[HeldOutRow]
    targets: list[TargetEntry]
    controls: list[Control]


def read_evaluations(recipe: Recipe, manifests: Mapping[str, Manifest]) -> list[Evaluation]:
    """Every evaluation stage that has finished. Raises UserError for a damaged result."""
    return [
        _evaluation(recipe, stage, manifests[stage.name])
        for stage in recipe.stages
        if isinstance(stage, EvaluateStage) and stage.name in manifests
    ]


def _evaluation(recipe: Recipe, stage: EvaluateStage, manifest: Manifest) -> Evaluation:
    folder = recipe.workdir / stage.name
    checkpoints = list(manifest.config["checkpoints"])
    files = {name: folder / f"{name}.json" for name in checkpoints}
    first = read_result(files[checkpoints[0]]) if files[checkpoints[0]].is_file() else None
    found: dict[str, Any] = {"rows": [], "targets": []}
    if (folder / COMPARISON).is_file():
        found = json.loads((folder / COMPARISON).read_text(encoding="utf-8"))
    rows = rows_of(found["rows"], checkpoints[0])
    if first is not None and not rows:
        rows = list(_alone(first, recipe.seed))
    return Evaluation(
        stage=stage.name,
        model=stage.model,
        checkpoints=checkpoints,
        profiles=_profiles(first) if first else {},
        rows=rows,
        held_out=list(_held_out(manifest.metrics, checkpoints)),
        targets=[_target(one) for one in found["targets"]],
        controls=_controls(recipe, files),
    )


def rows_of(found: Sequence[Mapping[str, Any]], base: str) -> list[MeasureRow]:
    """The rows of a comparison as JSON, those of the same measure together, the base first."""
    together: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in found:
        together.setdefault((row["suite"], row["measure"]), []).append(row)
    return [
        MeasureRow(
            suite=suite,
            measure=measure,
            unit=rows[0]["unit"],
            higher_is_better=rows[0]["higher_is_better"],
            items=rows[0]["paired"]["items"],
            values=[
                Value(base, Estimate(**rows[0]["paired"]["base"]), None, None),
                *(_value(row) for row in rows),
            ],
        )
        for (suite, measure), rows in together.items()
    ]


def _value(row: Mapping[str, Any]) -> Value:
    paired = row["paired"]
    return Value(
        row["model"], Estimate(**paired["new"]), Estimate(**paired["ratio"]), row["change"]
    )


def _target(row: Mapping[str, Any]) -> TargetEntry:
    estimate = Estimate(**row["interval"])
    return TargetEntry(row["target"], row["path"], row["model"], estimate, row["verdict"])


def _alone(result: EvaluationResult, seed: int) -> Iterator[MeasureRow]:
    """The measures of a single checkpoint, which nothing was compared with."""
    for name, suite in result.suites.items():
        for part, items in suite.parts():
            for measure, scores in items.measures.items():
                estimate = Estimate(**asdict(_interval(scores, seed)))
                yield MeasureRow(
                    suite=f"{name}[{part}]" if part else name,
                    measure=measure,
                    unit=scores.unit,
                    higher_is_better=scores.higher_is_better,
                    items=len(items.ids),
                    values=[Value(result.model.name, estimate, None, None)],
                )


def _interval(measure: Measure, seed: int) -> Interval:
    if measure.binary:
        return statistics.accuracy(sum(s > 0 for s in measure.scores), len(measure.scores))
    return statistics.compare_scores(measure.scores, measure.scores, measure.weights, seed).base


def _profiles(result: EvaluationResult) -> dict[str, str]:
    return {
        name: meaning
        for suite in result.suites.values()
        for name, meaning in suite.profiles.items()
    }


def _held_out(metrics: Mapping[str, Any], checkpoints: Sequence[str]) -> Iterator[HeldOutRow]:
    """By set, the checkpoints in their order."""
    sets = [name for name, one in metrics[checkpoints[0]].items() if "perplexity" in one]
    for name in sets:
        for checkpoint in checkpoints:
            one = metrics[checkpoint][name]
            yield HeldOutRow(name, checkpoint, one["loss"], one["perplexity"], int(one["tokens"]))


def _controls(recipe: Recipe, files: Mapping[str, Path]) -> list[Control]:
    """Each control that was measured beside the last stage it stands for."""
    found = []
    singles = {one.name: one.of[-1] for one in recipe.stages if isinstance(one, SingleStage)}
    for control, file in files.items():
        last = singles.get(stage_of(control))
        for staged, other in files.items():
            if stage_of(staged) == last and file.is_file() and other.is_file():
                pair = compare([file, other], margin=recipe.evaluation.margin, seed=recipe.seed)
                rows = rows_of(statistics.to_json(pair)["rows"], control)
                whole = [row for row in rows if not row.is_part]
                found.append(Control(control, staged, whole))
    return found
