"""The study's figures as a dated section of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from benchmarks.curriculum.claims import CLAIMS, FIGURES, Claim, Figure, Values, finding
from benchmarks.curriculum.settings import BATCH, SEQUENCE_LENGTH, Settings
from benchmarks.curriculum.study import Rates
from megatron_soaes.accelerator.machine import Machine
from megatron_soaes.evaluation.statistics import Interval, across_seeds

MISSING = "-"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Report:
    """One study with everything its section tells."""

    machine: Machine
    command: str
    settings: Settings
    rates: Rates
    seeds: Sequence[int]
    values: Values


def section(report: Report, now: datetime | None = None) -> str:
    """What was run, the means, the claims, and how far they reach."""
    lines = [
        f"## The curriculum in miniature, {(now or datetime.now(UTC)):%Y-%m-%d}",
        "",
        *_setting(report),
        "",
        *means_table(report.values),
        "",
        *claims_table(report.values),
        "",
        *_reading(report),
    ]
    return "\n".join(lines) + "\n"


def means_table(values: Values) -> list[str]:
    """A row for each model, a column for each figure: mean and 95 % interval over the seeds."""
    lines = [_row(["model", *(figure.title for figure in FIGURES)])]
    lines.append(_row(["---"] * (len(FIGURES) + 1)))
    for model, columns in values.items():
        lines.append(_row([model, *(_mean(columns.get(f.path), f) for f in FIGURES)]))
    return lines


def claims_table(values: Values) -> list[str]:
    """A row for each claim with its ratio, its difference and its verdict."""
    titles = ("claim", "figure", "model", "control", "wanted", "ratio", "difference", "verdict")
    return [_row(titles), _row(["---"] * len(titles)), *(_claim(one, values) for one in CLAIMS)]


def _claim(claim: Claim, values: Values) -> str:
    chance = f" - {claim.figure.chance:g}" if claim.above_chance else ""
    names = [claim.text, claim.figure.title + chance, claim.model, claim.control]
    wanted = f">= {claim.bound:g}"
    found = finding(claim, values)
    if found is None:
        return _row([*names, wanted, MISSING, MISSING, NOT_RUN])
    ratio = "undefined" if found.ratio is None else _interval(found.ratio, ".3f")
    difference = MISSING
    if found.difference is not None:
        difference = _interval(found.difference, f"+.{claim.figure.decimals}f")
    return _row([*names, wanted, ratio, difference, found.verdict.value])


def _mean(column: Sequence[float] | None, figure: Figure) -> str:
    form = f".{figure.decimals}f"
    if column is None:
        return MISSING
    return format(column[0], form) if len(column) == 1 else _interval(across_seeds(column), form)


def _interval(interval: Interval, form: str) -> str:
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _setting(report: Report) -> list[str]:
    settings, rates, machine = report.settings, report.rates, report.machine
    device = machine.gpu_name or f"CPU, {machine.cores} cores"
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    tokens = settings.cpt_steps * BATCH * SEQUENCE_LENGTH
    sft = ", ".join(f"{stage} {lr:g}" for stage, lr in rates.sft.items())
    return [
        f"`{report.command}`",
        "",
        f"- {device}; {versions}",
        f"- Base: {settings.base_tokens / 1e6:.1f}M tokens, {settings.genre_share:.0%} of them"
        " documents of other companies than the exam's.",
        f"- CPT: {tokens / 1e6:.2f}M tokens, {settings.cpt_replay:.0%} replay, learning rate"
        f" {rates.cpt:g}. The control *replay only* takes as many steps on general text.",
        f"- SFT: {settings.sft1_steps} + {settings.sft2_steps} steps of {BATCH} x"
        f" {SEQUENCE_LENGTH} tokens, {settings.sft_general:.0%} general text in every arm,"
        f" {settings.sft2_dialogues:.0%} of stage 1 in stage 2; learning rates: {sft}.",
        "- Learning rates were chosen by validation loss on a seed that is not reported.",
        f"- Seeds {', '.join(map(str, report.seeds))}. Between seeds the order of the data and the"
        " packing differ, in CPT and in SFT; the base, the world and the exam are the same.",
    ]


def _reading(report: Report) -> list[str]:
    return [
        f"In brackets: 95 % intervals over {len(report.seeds)} seeds (Student's t; the difference:"
        " Welch's). Ratios are taken seed by seed, of bits upside down, and the verdict is that of"
        " their interval. Questions, cloze items and base stay the same: the intervals say nothing"
        " about others.",
        "",
        "CPT is measured twice: by the exam after the same SFT with and without it, which is what a"
        " user gets, and by going on with held-out documents, which needs no SFT. Against"
        " *replay only* nothing differs but the domain text; against the base or *no CPT* CPT has"
        " also trained longer. A base cannot sit the exam: it knows no dialogue.",
    ]
