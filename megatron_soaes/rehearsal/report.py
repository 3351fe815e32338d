"""What a rehearsal ran, what stood in for what, and what it cannot say: as text and as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_soaes import files
from megatron_soaes.errors import ExitCode
from megatron_soaes.preflight.findings import Finding
from megatron_soaes.rehearsal.changes import Change, grouped

REPORT_FILE = "rehearsal.txt"
DATA_FILE = "rehearsal.json"


@dataclass(frozen=True)
class StageRun:
    """One step of one run."""

    run: int
    """From 1."""
    name: str
    kind: str
    layout: str
    rehearsed: bool
    """False for one that only makes what others of the run read."""
    seconds: float | None
    """None where it is not done."""


@dataclass(frozen=True)
class Failure:
    """Where a run ended before its end."""

    run: int
    stage: str | None
    """None where no stage had begun."""
    code: int
    logs: Path


@dataclass(frozen=True)
class RehearsalReport:
    """All that a rehearsal has to say."""

    recipe: str
    workdir: Path
    stages: tuple[StageRun, ...]
    material: tuple[str, ...]
    """What stands in for models and files."""
    here: tuple[str, ...]
    """What this machine does by other means."""
    changes: tuple[Change, ...]
    jobs: Finding | None
    """None for a recipe without a cluster."""
    not_rehearsed: tuple[str, ...]
    failure: Failure | None

    @property
    def exit_code(self) -> int:
        """0 when every run came to its end and every script can be read."""
        if self.failure is not None:
            return self.failure.code
        return ExitCode.BAD_INPUT if self.jobs and self.jobs.wrong else ExitCode.OK

    def text(self) -> str:
        """The report as one page."""
        return "\n".join(_lines(self)) + "\n"

    def write(self) -> None:
        """Leave both forms in the rehearsal's folder."""
        files.write_text(self.workdir / REPORT_FILE, self.text())
        files.write_json(self.workdir / DATA_FILE, _data(self))


def _data(report: RehearsalReport) -> dict[str, Any]:
    content = asdict(report) | {"exit_code": int(report.exit_code)}
    content["workdir"] = str(report.workdir)
    if report.failure is not None:
        content["failure"]["logs"] = str(report.failure.logs)
    return content


def _lines(report: RehearsalReport) -> Iterator[str]:
    yield f"Rehearsal of '{report.recipe}'"
    yield from _runs(report)
    yield "\nStands in for what is yours:"
    yield from (f"  - {line}" for line in report.material)
    yield "\nDone by other means here:"
    yield from (f"  - {line}" for line in report.here)
    yield "\nSubstituted in the recipe:"
    for (field, wanted, used), sections in grouped(report.changes).items():
        yield f"  - {field}: {wanted} -> {used} ({', '.join(sections)})"
    if report.jobs is not None:
        yield f"\nJobs of the recipe as it is: {'WRONG' if report.jobs.wrong else 'well'}"
        yield from (f"  - {line}" for line in report.jobs.well)
        yield from (f"  ! {line}" for line in report.jobs.wrong)
    yield "\nNot rehearsed:"
    yield from (f"  - {line}" for line in report.not_rehearsed)
    yield ""
    yield from _end(report)


def _runs(report: RehearsalReport) -> Iterator[str]:
    last = 0
    width = max((len(one.name) for one in report.stages), default=0)
    for one in report.stages:
        if one.run != last:
            yield f"\nRun {one.run}:"
            last = one.run
        time = "not done" if one.seconds is None else f"{one.seconds:.1f} s"
        purpose = "" if one.rehearsed else ", only for what others read"
        yield f"  {one.name:<{width}}  {time:>8}  {one.kind}, {one.layout}{purpose}"


def _end(report: RehearsalReport) -> Iterator[str]:
    failure = report.failure
    if failure is not None:
        what = f"at stage {failure.stage}" if failure.stage else "before its first stage"
        yield f"Run {failure.run} ended {what} with exit code {failure.code}."
        yield f"Its logs are in {failure.logs}; the same command goes on from there."
        return
    if report.exit_code != ExitCode.OK:
        yield "Every stage ran, but the jobs need mending before they are submitted."
    else:
        seconds = sum(one.seconds or 0.0 for one in report.stages)
        yield f"Every stage ran to its end, in {seconds / 60:.1f} minutes of stages."
    yield f"All results are in {report.workdir}."
