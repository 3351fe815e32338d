"""Results of several models side by side; the first is the base of every difference and ratio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from megatron_soaes.errors import UserError
from megatron_soaes.evaluation import statistics
from megatron_soaes.evaluation.result import EvaluationResult, Measure, Model, Suite, read_result
from megatron_soaes.evaluation.statistics import Interval, Paired, Verdict
from megatron_soaes.recipe.targets import Margin, Target

DEFAULT_MARGIN = Margin(2.0, "%")
DEFAULT_SEED = 1234


class Change(StrEnum):
    """What the interval of the difference says."""

    BETTER = "better"
    WORSE = "worse"
    NOT_SHOWN = "no difference shown"


@dataclass(frozen=True)
class Retention:
    """Whether a model keeps what the base can do, up to a margin (non-inferiority)."""

    margin: str
    verdict: Verdict
    power: float
    """The chance that a truly equal model gets SHOWN with these items; see statistics."""


@dataclass(frozen=True)
class Row:
    """One measure of one model against the base."""

    suite: str
    """`name`, or `name[source]` for a part of it."""
    measure: str
    """`profile.metric`."""
    unit: str
    higher_is_better: bool
    model: str
    paired: Paired
    change: Change
    chance: float | None
    measurable: bool | None
    """Whether the base surely beats guessing by enough; None where there is nothing to guess."""
    retention: Retention

    @property
    def path(self) -> str:
        """The full name of the measure."""
        return f"{self.suite}.{self.measure}"


@dataclass(frozen=True)
class TargetRow:
    """One target for one measure of one model."""

    target: str
    path: str
    model: str
    interval: Interval
    """Of the ratio, or of the difference where the target is in points."""
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """Everything `compare` found; `statistics.to_json` writes it."""

    base: str
    models: dict[str, Model]
    """By label, the base first."""
    seed: int
    rows: tuple[Row, ...]
    targets: tuple[TargetRow, ...]


def compare(
    paths: Sequence[Path],
    targets: Sequence[str] = (),
    margin: str | None = None,
    seed: int = DEFAULT_SEED,
) -> Comparison:
    """Compare result files; the first is the base.

    `targets` are such as `rouge1 >= 1.08` (a ratio) or `exam.accuracy >= 5 points` (a difference);
    `margin` is what a model may lose and still count as equal, such as `2%` (of the base's value,
    the default) or `1.5 points`. Raises UserError when fewer than two files are given, when they
    measured different data, settings or package versions, and for a target that no measure has.
    """
    wanted = [Target.parse(text) for text in targets]
    allowed = Margin.parse(margin) if margin is not None else DEFAULT_MARGIN
    if len(paths) < 2:
        raise UserError("compare", f"{len(paths)} results", "two or more", "Name a base and more.")
    results = [read_result(path) for path in paths]
    for path, result in zip(paths[1:], results[1:], strict=True):
        _check_comparable(paths[0], results[0], path, result)
    labels = _labels(paths, results)
    rows = [
        row
        for label, result in zip(labels[1:], results[1:], strict=True)
        for row in _rows(label, results[0], result, allowed, seed)
    ]
    return Comparison(
        base=labels[0],
        models={label: result.model for label, result in zip(labels, results, strict=True)},
        seed=seed,
        rows=tuple(rows),
        targets=tuple(found for target in wanted for found in _judge_target(target, rows)),
    )


def require_targets(comparison: Comparison) -> None:
    """Raise UserError for the first target that is not shown."""
    for row in comparison.targets:
        if row.verdict is not Verdict.SHOWN:
            raise UserError(
                f"target '{row.target}' of {row.model}",
                f"{row.verdict.value}: {row.path} {row.interval.value:.3f} "
                f"[{row.interval.low:.3f}, {row.interval.high:.3f}]",
                "shown",
                "The whole interval has to be on the right side.",
            )


def _labels(paths: Sequence[Path], results: Sequence[EvaluationResult]) -> list[str]:
    names = [result.model.name for result in results]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _check_comparable(
    base_path: Path, base: EvaluationResult, path: Path, other: EvaluationResult
) -> None:
    for name in sorted(base.suites.keys() ^ other.suites.keys()):
        lacking = path if name in base.suites else base_path
        raise UserError(
            lacking, f"no suite {name!r}", "the same suites in all results", "Evaluate it as well."
        )
    for name, suite in base.suites.items():
        for what, ours, theirs in _identity(suite, other.suites[name]):
            if ours != theirs:
                raise UserError(
                    f"{path}: suite {name!r}",
                    f"{what} {theirs}",
                    f"{what} {ours}, as in {base_path}",
                    "Evaluate both models in the same way on the same data.",
                )


def _identity(suite: Suite, other: Suite) -> Iterator[tuple[str, object, object]]:
    """(what, value in one, value in the other) of all that must agree."""
    yield "data", f"{suite.data} {suite.data_sha256}", f"{suite.data} {other.data_sha256}"
    yield "items", len(suite.ids), len(other.ids)
    yield "item ids", suite.ids, other.ids
    yield "measures", sorted(suite.measures), sorted(other.measures)
    for key in sorted({*suite.settings, *other.settings}):
        yield f"setting {key!r}", suite.settings.get(key), other.settings.get(key)
    for package in sorted({*suite.versions, *other.versions}):
        yield package, suite.versions.get(package), other.versions.get(package)


def _rows(
    label: str, base: EvaluationResult, new: EvaluationResult, margin: Margin, seed: int
) -> Iterator[Row]:
    for name, suite in base.suites.items():
        pairs = zip(suite.parts(), new.suites[name].parts(), strict=True)
        for (part, before), (_, after) in pairs:
            where = f"{name}[{part}]" if part else name
            for measure, scores in before.measures.items():
                paired = _paired(scores, after.measures[measure], seed)
                yield _row((where, measure, label), scores, paired, margin)


def _paired(base: Measure, new: Measure, seed: int) -> Paired:
    if base.binary and new.binary:
        right = [[score > 0 for score in measure.scores] for measure in (base, new)]
        return statistics.compare_outcomes(*right)
    return statistics.compare_scores(base.scores, new.scores, base.weights, seed)


def _row(names: tuple[str, str, str], base: Measure, paired: Paired, margin: Margin) -> Row:
    suite, name, label = names
    measurable = None
    if base.chance is not None:
        measurable = statistics.is_measurable(paired.base, base.chance)
    points = margin.points(paired.base.value)
    return Row(
        suite=suite,
        measure=name,
        unit=base.unit,
        higher_is_better=base.higher_is_better,
        model=label,
        paired=paired,
        change=_change(paired, base.higher_is_better),
        chance=base.chance,
        measurable=measurable,
        retention=Retention(
            margin=str(margin),
            verdict=_judge(margin.target(name, base.higher_is_better), paired, measurable),
            power=statistics.non_inferiority_power(points, paired.deviation, paired.items),
        ),
    )


def _change(paired: Paired, higher_is_better: bool) -> Change:
    difference = paired.difference
    if paired.items < statistics.MINIMUM_ITEMS or difference.low <= 0 <= difference.high:
        return Change.NOT_SHOWN
    return Change.BETTER if (difference.low > 0) == higher_is_better else Change.WORSE


def _judge(target: Target, paired: Paired, measurable: bool | None) -> Verdict:
    # A ratio to nothing says nothing.
    if measurable is False or (paired.base.value == 0 and not target.in_points):
        return Verdict.NOT_MEASURABLE
    if paired.items < statistics.MINIMUM_ITEMS:
        return Verdict.NOT_SHOWN
    return statistics.judge(_measured(target, paired), target.operator, target.bound)


def _measured(target: Target, paired: Paired) -> Interval:
    return paired.difference if target.in_points else paired.ratio


def _judge_target(target: Target, rows: Sequence[Row]) -> list[TargetRow]:
    found = [row for row in rows if target.is_about(row.path)]
    if not found:
        known = ", ".join(dict.fromkeys(row.path for row in rows))
        raise UserError(
            f"target '{target}'",
            f"no measure {target.metric}",
            "a measure of the results",
            f"Known: {known}.",
        )
    return [
        TargetRow(
            str(target),
            row.path,
            row.model,
            _measured(target, row.paired),
            _judge(target, row.paired, row.measurable),
        )
        for row in found
    ]
