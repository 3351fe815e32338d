"""Tables of one result and of a comparison, for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from megatron_soaes.evaluation.compare import Comparison, Row
from megatron_soaes.evaluation.result import EvaluationResult
from megatron_soaes.evaluation.statistics import (
    CONFIDENCE,
    MINIMUM_ITEMS,
    Flips,
    Interval,
    Verdict,
)

MAIN_MEASURES = ("rouge1", "bleu4", "accuracy", "acc", "bits_per_byte")
KEPT = {
    Verdict.SHOWN: "kept",
    Verdict.MISSED: "lost",
    Verdict.NOT_SHOWN: "not shown",
    Verdict.NOT_MEASURABLE: "not measurable",
}


def result_table(result: EvaluationResult) -> Table:
    """Every measure of every suite and of its parts, with the profile it was taken in."""
    model = result.model
    at = f", iteration {model.iteration}" if model.iteration is not None else ""
    table = Table(title=escape(f"{model.name}{at} ({model.weights_sha256[:12]})"))
    for heading in ("suite", "measure", "items", "value", "without empty", "chance"):
        table.add_column(heading, justify="left" if heading in ("suite", "measure") else "right")
    for name, suite in result.suites.items():
        for part, items in suite.parts():
            where = f"{name}[{part}]" if part else name
            for measure, scores in items.measures.items():
                numbers = (scores.value, scores.mean_of_nonempty, scores.chance)
                shown = [_value(number, scores.unit) for number in numbers]
                table.add_row(escape(where), measure, str(len(items.ids)), *shown)
        for measure, value in suite.unpaired.items():
            table.add_row(escape(name), measure, str(len(suite.ids)), f"{value:.4g}", "", "")
    described = {k: v for suite in result.suites.values() for k, v in suite.profiles.items()}
    table.caption = Text("\n".join(f"{name}: {text}" for name, text in described.items()))
    table.caption_justify = "left"
    return table


def summary_tables(results: Mapping[str, EvaluationResult], comparison: Comparison) -> list[Table]:
    """The main numbers of each model, what is kept of the base in general, the targets if any.

    `results` by the labels of the comparison, the base first.
    """
    kinds = {name: suite.kind for name, suite in results[comparison.base].suites.items()}
    general = [
        row
        for row in comparison.rows
        if kinds.get(row.suite, "questions") != "questions" and is_main(row.measure)
    ]
    tables = [_headlines(results)]
    if general:
        tables.append(_retention(comparison.base, general))
    return [*tables, _targets(comparison)] if comparison.targets else tables


def _headlines(results: Mapping[str, EvaluationResult]) -> Table:
    """A line for each model, a column for each main measure."""
    base = next(iter(results.values()))
    chosen = [
        (name, measure)
        for name, suite in base.suites.items()
        for measure in suite.measures
        if is_main(measure)
    ]
    table = Table("model", title="what was measured")
    for name, measure in chosen:
        table.add_column(
            f"{escape(name)}\n" + measure.replace(".", "\n"), justify="right", overflow="fold"
        )
    for label, result in results.items():
        measures = [result.suites[name].measures[measure] for name, measure in chosen]
        table.add_row(escape(label), *(_value(one.value, one.unit) for one in measures))
    return table


def is_main(measure: str) -> bool:
    """Whether it belongs into a short table; the others tell the same in other words."""
    return measure.rpartition(".")[2] in MAIN_MEASURES


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The values of each model with their ratios, the retention verdicts, the targets if any."""
    values = [_values(comparison, model) for model in list(comparison.models)[1:]]
    tables = [*values, _retention(comparison.base, comparison.rows)]
    return [*tables, _targets(comparison)] if comparison.targets else tables


def _values(comparison: Comparison, model: str) -> Table:
    """Two lines a row, so that 100 columns are enough."""
    table = Table(
        title=escape(f"{model} against {comparison.base}"), box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("suite\nmeasure", overflow="fold", min_width=19)
    for heading in ("items", "base\nnew", "new / base", "new - base", "+ / -\np"):
        table.add_column(heading, justify="right")
    table.add_column("change")
    for row in comparison.rows:
        if row.model != model:
            continue
        paired, unit = row.paired, row.unit
        # Other units than % are in the measure's name.
        shown = unit if unit == "%" else ""
        values = [_value(value.value, shown) for value in (paired.base, paired.new)]
        table.add_row(
            f"{escape(row.suite)}\n{row.measure}", str(paired.items), "\n".join(values),
            _interval(paired.ratio, ".3f", "\n"), _interval(paired.difference, "+.2f", "\n"),
            _flips(paired.flips), row.change.value.replace(" shown", "\nshown"),
        )  # fmt: skip
    table.caption = (
        f"in brackets: {CONFIDENCE:.0%} interval over the items, each on its own\n"
        "+ / -: items that became right and wrong; p: McNemar, exact"
    )
    table.caption_justify = "left"
    return table


def _retention(base: str, rows: Sequence[Row]) -> Table:
    table = Table(title=escape(f"what is kept of {base}"))
    for heading in ("suite", "measure", "model"):
        table.add_column(heading, overflow="fold")
    for heading in ("kept %", "margin", "power"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for row in rows:
        table.add_row(
            escape(row.suite), row.measure, escape(row.model),
            _interval(_percent(row.paired.ratio), ".1f"), row.retention.margin,
            f"{row.retention.power:.0%}", _kept(row),
        )  # fmt: skip
    table.caption = (
        "power: the chance that an equal model is shown to be within the margin on these items; "
        f"fewer than {MINIMUM_ITEMS} items show nothing"
    )
    table.caption_justify = "left"
    return table


def _targets(comparison: Comparison) -> Table:
    table = Table(title="targets")
    for heading in ("target", "measure", "model", "measured", "verdict"):
        table.add_column(heading, overflow="fold")
    for row in comparison.targets:
        table.add_row(
            escape(row.target), escape(row.path), escape(row.model),
            _interval(row.interval, ".3f"), row.verdict.value,
        )  # fmt: skip
    return table


def _kept(row: Row) -> str:
    verdict = KEPT[row.retention.verdict]
    if row.retention.verdict is Verdict.NOT_MEASURABLE and row.paired.base.value == 0:
        return f"{verdict}: the base has 0"
    if row.measurable is False and row.chance is not None:
        base = _interval(row.paired.base, ".1f")
        return f"{verdict}: base {base}, chance {row.chance:.1f}"
    return verdict


def _percent(ratio: Interval) -> Interval:
    return Interval(100 * ratio.value, 100 * ratio.low, 100 * ratio.high, ratio.method)


def _interval(interval: Interval, form: str, between: str = " ") -> str:
    value = "undefined" if math.isnan(interval.value) else format(interval.value, form)
    high = "no bound" if math.isinf(interval.high) else format(interval.high, form)
    return f"{value}{between}\\[{interval.low:{form}}, {high}]"


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.2f} %" if unit == "%" else f"{value:.4g} {unit}".rstrip()


def _flips(flips: Flips | None) -> str:
    return f"{flips.gained} / {flips.lost}\n{flips.p_value:.2g}" if flips else ""
