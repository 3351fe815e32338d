"""The report on a finished curation: `report.html`, one page that needs nothing else, and
`report.json`, its numbers.

Texts, names and sources are a stranger's: all of them are escaped, and the page forbids scripts and
connections besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from data_prep.curation.pipeline.account import SAMPLE_CHARACTERS, SAMPLES, SCORE_BINS
from data_prep.curation.pipeline.plan import OUTCOME
from data_prep.curation.report import explain
from data_prep.curation.report.data import Clusters, Outcome, read_clusters, read_outcome
from data_prep.curation.report.figures import Series, funnel, histogram, percent, short_number
from data_prep.curation.report.summary import (
    BLEND,
    Amount,
    Source,
    Summary,
    as_json,
    recipe_yaml,
    summarise,
)
from megatron_soaes.files import write_json, write_text

PAGE, NUMBERS = "report.html", "report.json"
MOST_SOURCES = 50
MAIN_REASONS = 3
CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
"""Control characters, which HTML does not allow, and the pictures Unicode has of them."""


def write_report(output: Path) -> Path:
    """Report on the curation whose output is in `output`; returns the page, written beside it.

    Raises UserError as `read_outcome` and `read_clusters` do.
    """
    outcome = read_outcome(output)
    summary = summarise(outcome, read_clusters(output, outcome))
    text = render(outcome, summary, output.resolve().name)
    write_json(output / NUMBERS, as_json(summary))
    write_text(output / PAGE, text)
    return output / PAGE


def render(outcome: Outcome, summary: Summary, name: str) -> str:
    """The page on a curation called `name`."""
    environment = Environment(
        loader=PackageLoader("data_prep.curation.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": lambda number: f"{number:,}",
        "share": percent,
        "words": _words,
    }
    shown, rest = summary.sources[:MOST_SOURCES], summary.sources[MOST_SOURCES:]
    return environment.get_template("page.html.j2").render(
        name=name,
        outcome=outcome,
        summary=summary,
        funnel=funnel(summary.funnel),
        sources=shown,
        other_sources=len(rest),
        others=_together(rest),
        main_reasons=_main_reasons,
        lengths=_lengths(summary),
        scores=list(_scores(summary)),
        clusters=_clusters(summary.clusters) if summary.clusters else None,
        excerpts=_excerpts(outcome),
        recipe=recipe_yaml(summary.blend),
        blend=BLEND,
        explain=explain,
        outcome_file=OUTCOME,
        numbers_file=NUMBERS,
        most_samples=SAMPLES,
        sample_characters=SAMPLE_CHARACTERS,
    )


def _printable(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return value.translate(CONTROL_PICTURES)
    return value


def _words(value: Any) -> str:
    """A value of a sample; of an object its fields with their values."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


def _together(sources: Sequence[Source]) -> Source:
    """Sources as one."""
    reasons: dict[str, int] = {}
    for source in sources:
        for reason, documents in source.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + documents
    return Source(
        "",
        sum((source.read for source in sources), Amount()),
        sum((source.kept for source in sources), Amount()),
        dict(sorted(reasons.items(), key=lambda item: -item[1])),
    )


def _main_reasons(source: Source) -> str:
    largest = list(source.reasons.items())
    words = [f"{reason} {documents:,}" for reason, documents in largest[:MAIN_REASONS]]
    more = len(largest) - MAIN_REASONS
    return ", ".join([*words, f"{more} more"] if more > 0 else words)


def _lengths(summary: Summary) -> Markup:
    read, kept = summary.lengths_read, summary.lengths_kept
    known = sorted({*read, *kept})
    if not known:
        return Markup()
    bins = [0] if known[0] == 0 else []
    length = known[0] or 1
    while length <= known[-1]:
        bins.append(length)
        length *= 2
    series = [
        Series("read", "ghost", [read.get(start, 0) for start in bins]),
        Series("left", "kept", [kept.get(start, 0) for start in bins]),
    ]
    x = "characters in a document; each step is twice as long as the one before"
    edges = [short_number(edge) for edge in [*bins, length]]
    return histogram(series, edges, x, "documents", at_edges=True)


def _scores(summary: Summary) -> Iterator[tuple[str, Markup]]:
    edges = [f"{step / SCORE_BINS:.2f}" for step in range(SCORE_BINS + 1)]
    x = f"score from 0 to 1, in steps of {1 / SCORE_BINS:g}"
    for name, given in sorted(summary.scores_given.items()):
        kept = summary.scores_kept.get(name, [0] * len(given))
        series = [Series("scored", "ghost", given), Series("left", "kept", kept)]
        yield name, histogram(series, edges, x, "documents", at_edges=True)


def _clusters(clusters: Clusters) -> Markup:
    """Clusters by size: 2, 3 to 4, 5 to 8 and so on."""
    steps: dict[int, int] = {}
    for size, number in clusters.sizes.items():
        last = 1 << (size - 1).bit_length()
        steps[last] = steps.get(last, 0) + number
    if not steps:
        return Markup()
    lasts = [1 << step for step in range(1, max(steps).bit_length())]
    labels = ["2", *(f"{last // 2 + 1:,}\N{EN DASH}{last:,}" for last in lasts[1:])]
    series = [Series("clusters", "gone", [steps.get(last, 0) for last in lasts])]
    return histogram(series, labels, "documents in a cluster", "clusters")


def _excerpts(outcome: Outcome) -> dict[str, str]:
    """The beginning of a dropped near copy, by the place of the document that stayed for it."""
    samples = [
        sample
        for block in outcome.blocks
        for sample in block.account.samples.get("near_copy", [])
        if "copy_of" in sample
    ]
    return {sample["copy_of"]: sample["text"] for sample in samples}
