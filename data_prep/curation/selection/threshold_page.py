"""The report on cut-offs as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data_prep.curation.selection.scores import NAMES
from data_prep.curation.selection.thresholds import (
    BAND,
    Amount,
    Effect,
    Sample,
    Share,
    ThresholdReport,
)

ROWS = 15
"""Sources of a table; the report as JSON has all."""


def markdown(report: ThresholdReport) -> str:
    """The whole report; every number of it stands in the JSON as well."""
    lines = [
        "# What each cut-off keeps",
        "",
        f"{_amount(report.all)}. Nothing has been dropped. Shares are of characters.",
        "",
        *_overview(report.effects),
        "# What each cut-off loses",
        "",
        f"Just above and just below: within {BAND} of the cut-off, drawn by hash.",
        "",
    ]
    for effect in report.effects:
        lines += _details(effect)
    return "\n".join(lines).rstrip() + "\n"


def _overview(effects: Sequence[Effect]) -> Iterator[str]:
    """A table for each score by itself, and one for combinations."""
    sections = {name: [effect for effect in effects if _is_of(effect, name)] for name in NAMES}
    named = [effect for section in sections.values() for effect in section]
    sections["combinations"] = [effect for effect in effects if effect not in named]
    for name, section in sections.items():
        if not section:
            continue
        yield from (f"## {name.capitalize()}", "")
        yield from ("| keep | documents | characters | tokens | share |", "|---|--:|--:|--:|--:|")
        for effect in section:
            kept = effect.kept
            tokens = "" if kept.tokens is None else f"{kept.tokens:,}"
            yield (
                f"| {effect.selection} | {kept.documents:,} | {kept.characters:,} | {tokens} "
                f"| {effect.share:.1%} |"
            )
        yield ""


def _is_of(effect: Effect, name: str) -> bool:
    return effect.selection.startswith(f"{name}>=") and " and " not in effect.selection


def _details(effect: Effect) -> Iterator[str]:
    yield from (f"## {effect.selection}", "")
    yield f"Keeps {_amount(effect.kept)}, {effect.share:.1%}."
    yield ""
    yield from _share_table("source", effect.by_source)
    yield from _share_table("language", effect.by_language)
    yield from _sample_table("Just above: kept", effect.just_above)
    yield from _sample_table("Just below: lost", effect.just_below)


def _share_table(what: str, shares: Sequence[Share]) -> Iterator[str]:
    yield from (f"| {what} | documents | kept | share kept |", "|---|--:|--:|--:|")
    for share in shares[:ROWS]:
        yield (
            f"| {_cell(share.name)} | {share.all.documents:,} | {share.kept.documents:,} "
            f"| {share.share:.1%} |"
        )
    if len(shares) > ROWS:
        yield f"| {len(shares) - ROWS:,} more, in the JSON | | | |"
    yield ""


def _sample_table(title: str, samples: Sequence[Sample]) -> Iterator[str]:
    if not samples:
        yield from (f"{title}: no document.", "")
        return
    yield from (f"| {title} | source | id | margin |", "|---|---|---|--:|")
    for sample in samples:
        yield (
            f"| {_cell(sample.title)} | {_cell(sample.source)} | {_cell(sample.id)} "
            f"| {sample.margin:+.3f} |"
        )
    yield ""


def _amount(amount: Amount) -> str:
    tokens = "" if amount.tokens is None else f", {amount.tokens:,} tokens"
    return f"{amount.documents:,} documents, {amount.characters:,} characters{tokens}"


def _cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
