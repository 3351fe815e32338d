"""The report on a run: `report.html`, one page that needs nothing else, and `report.json`.

It tells of a run that goes on as well as of a finished one. Names and texts may be a stranger's:
all of them are escaped, and the page forbids scripts and connections besides.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined
from markupsafe import Markup

from data_prep.curation.report.figures import funnel, percent
from data_prep.curation.report.page import CONTROL_PICTURES
from megatron_soaes.evaluation.statistics import Interval, to_json
from megatron_soaes.files import write_json, write_text
from megatron_soaes.pipeline.report import figures
from megatron_soaes.pipeline.report.data import Report, read_report
from megatron_soaes.pipeline.report.graph import graph
from megatron_soaes.pipeline.report.measures import Estimate
from megatron_soaes.pipeline.report.svg import COLOURS
from megatron_soaes.pipeline.status import State
from megatron_soaes.recipe.schema import Recipe

PAGE, NUMBERS = "report.html", "report.json"
FORMAT_VERSION = 1
SHORT_HASH = 12


def write_report(recipe: Recipe) -> Path:
    """Report on the run in `recipe.workdir` as far as it is; returns the page, written there.

    The numbers stand beside it in `report.json`. Nothing else is written, and no torch is needed.
    Raises UserError for a damaged manifest or result, before anything is written.
    """
    report = read_report(recipe)
    text = render(report)
    write_json(recipe.workdir / NUMBERS, {"format_version": FORMAT_VERSION, **to_json(report)})
    write_text(recipe.workdir / PAGE, text)
    return recipe.workdir / PAGE


def render(report: Report) -> str:
    """The page."""
    loader = PrefixLoader(
        {
            "run": PackageLoader("megatron_soaes.pipeline.report", "."),
            "house": PackageLoader("data_prep.curation.report", "."),
        }
    )
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": lambda number: f"{number:,}",
        "share": percent,
        "percentage": lambda share: f"{share:.1%}",
        "duration": duration,
        "moment": moment,
        "interval": interval,
        "reasons": reasons,
        "short_hash": lambda digest: digest[:SHORT_HASH],
    }
    return environment.get_template("run/page.html.j2").render(
        report=report,
        State=State,
        kinds={stage.kind for stage in report.stages},
        done=[stage for stage in report.stages if stage.state is State.DONE],
        fastest=max(
            ((speed, row) for speed in report.speeds for row in speed.rows if not row.adaptive),
            key=lambda pair: pair[1].speedup.value,
            default=None,
        ),
        models=_models(report),
        makers=_makers(report),
        figures=figures,
        graph=graph,
        funnel=funnel,
        most_drawn=COLOURS,
        numbers_file=NUMBERS,
    )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def moment(iso: str) -> str:
    """A moment of ISO 8601 to the second, in words."""
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M:%S %Z")


def interval(estimate: Estimate | Interval, form: str = ".2f") -> str:
    """`value [low, high]`; what has no bound is called so."""
    if estimate.value is None:
        return "undefined"
    low, high = (
        "no bound" if bound is None else f"{bound:{form}}"
        for bound in (estimate.low, estimate.high)
    )
    return f"{estimate.value:{form}} [{low}, {high}]"


def reasons(counts: dict[str, int]) -> str:
    """Numbers by reason, most first; a dash where there are none."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {number:,}" for name, number in ordered) or "–"


def _printable(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return value.translate(CONTROL_PICTURES)
    return value


def _models(report: Report) -> dict[str, tuple[list[str], dict[str, dict[str, Any]]]]:
    """By model: its training stages, and by held-out set the losses in each of them."""
    found: dict[str, tuple[list[str], dict[str, dict[str, Any]]]] = {}
    for curve in report.curves:
        stages, sets = found.setdefault(curve.model, ([], {}))
        stages.append(curve.stage)
        for one in curve.held_out:
            sets.setdefault(one.name, {})[curve.stage] = one
    return {model: entry for model, entry in found.items() if entry[1]}


def _makers(report: Report) -> dict[str, str]:
    """The stage that made a file or folder, by its path."""
    return {
        output.path: stage.name
        for stage in report.stages
        if stage.lineage
        for output in stage.lineage.outputs
    }
