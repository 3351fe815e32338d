"""One dated section of a results file: what was run, with what, and a table for each subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from benchmarks.gpu.pair import PairFigures
from benchmarks.subject import SMALL, Subject
from benchmarks.training_step import Figures
from megatron_soaes import files
from megatron_soaes.accelerator.machine import Machine

GIB = 2**30
COLUMNS = (
    "step", "ms a step", "tokens/s", "TFLOP/s", "of datasheet", "of measured", "peak GiB",
    "planned GiB", "loss, first to last",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A measurement, or why there is none."""

    subject: Subject
    name: str
    figures: Figures | None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything one run found."""

    machine: Machine
    command: str
    checks: str
    """The last line of the GPU tests."""
    datasheet: float | None
    """Dense bf16 TFLOP/s."""
    rows: list[Row]
    measured: float | None = None
    """TFLOP/s of a bf16 matrix product, once that was measured."""
    pair: Sequence[PairFigures] | str | None = None
    """Speculative decoding by mode, or why there are no figures; None before it was tried."""


def section(report: Report, now: datetime | None = None) -> str:
    """The report as Markdown. MFU counts model FLOPs (`ModelShape.flops_per_token`) against bf16
    rates in every row, so that FP8 rows compare with the others."""
    machine = report.machine
    device = machine.gpu_name or f"CPU, {machine.cores} cores"
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    datasheet = f"{report.datasheet:g} TFLOP/s" if report.datasheet else "no figure"
    measured = f"{report.measured:.3g} TFLOP/s" if report.measured else "not yet"
    lines = [
        f"## {(now or datetime.now(UTC)):%Y-%m-%d %H:%M} UTC, {device}",
        "",
        f"`{report.command}`",
        "",
        f"- GPU checks: {report.checks}",
        f"- Versions: {versions}",
        f"- bf16 rate by datasheet: {datasheet}; measured matrix product: {measured}. "
        "Both shares are model FLOPs against these, for FP8 too.",
        "",
    ]
    for subject, rows in groupby(report.rows, key=lambda row: row.subject):
        lines += _table(report, subject, list(rows))
    lines += _pair(report.pair)
    return "\n".join(lines)


def _table(report: Report, subject: Subject, rows: Sequence[Row]) -> list[str]:
    aware = subject.precision_aware
    optimizer = "bf16 gradients and first moments" if aware else "fp32 optimizer state"
    return [
        f"{subject.name}: {subject.shape.parameters / 1e6:,.1f}M parameters, random weights, "
        f"{optimizer} (ours); micro-batch {subject.micro_batch_size}, "
        f"{subject.tokens_per_step:,} tokens a step, "
        f"{subject.shape.flops_per_token(subject.sequence_length):.3g} model FLOPs a token; "
        f"median of {subject.steps} steps",
        "",
        _line(COLUMNS),
        _line(["---"] + ["---:"] * (len(COLUMNS) - 1)),
        *(_row(report, row) for row in rows),
        "",
    ]


def _pair(pair: Sequence[PairFigures] | str | None) -> list[str]:
    if pair is None:
        return []
    if isinstance(pair, str):
        return [f"Speculative decoding: {pair}", ""]
    columns = ("mode", "draft length", "speedup", "acceptance", "text as promised")
    rows = (
        _line(
            [
                one.mode,
                str(one.draft_length),
                f"{one.speedup:.2f} ({one.low:.2f} to {one.high:.2f})",
                f"{one.acceptance:.1%}",
                "yes" if one.identical else "NO",
            ]
        )
        for one in pair
    )
    return [
        f"Speculative decoding, {SMALL.name.partition(',')[0]} with a draft made to agree "
        "(benchmarks/gpu/pair.py), one sequence, against plain decoding:",
        "",
        _line(columns),
        _line(["---"] + ["---:"] * (len(columns) - 1)),
        *rows,
        "",
    ]


def _row(report: Report, row: Row) -> str:
    if row.figures is None:
        return _line([row.name, row.note] + [""] * (len(COLUMNS) - 2))
    figures, subject = row.figures, row.subject
    rate = subject.tokens_per_step / figures.seconds_per_step
    tflops = rate * subject.shape.flops_per_token(subject.sequence_length) / 1e12
    planned = figures.planned_memory_bytes
    return _line(
        [
            row.name,
            f"{figures.seconds_per_step * 1e3:,.1f}",
            f"{rate:,.0f}",
            f"{tflops:.3g}",
            f"{tflops / report.datasheet:.1%}" if report.datasheet else "-",
            f"{tflops / report.measured:.1%}" if report.measured else "-",
            f"{figures.peak_memory_bytes / GIB:.1f}",
            f"{planned / GIB:.1f}" if planned else "-",
            f"{figures.first_loss:.3f} to {figures.last_loss:.3f}",
        ]
    )


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def writer(file: Path) -> Callable[[str], None]:
    """What puts a section at the end of `file`, in place of the one it put there before.

    The file is replaced whole or not at all.
    """
    before = file.read_text(encoding="utf-8").rstrip("\n") + "\n\n" if file.exists() else ""
    return lambda text: files.write_text(file, before + text)


def append(file: Path, text: str) -> None:
    """Put a section at the end of `file`."""
    writer(file)(text)
