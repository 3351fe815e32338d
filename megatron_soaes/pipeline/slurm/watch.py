"""What became of the jobs of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Column, Table

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.slurm.commands import Element, cancel_jobs, elements_of
from megatron_soaes.pipeline.slurm.submission import FOLDER, Submitted, read_submission
from megatron_soaes.pipeline.status import StageStatus, read_status
from megatron_soaes.recipe.schema import Recipe


@dataclass(frozen=True)
class Watched:
    """One job beside the stage that it runs."""

    stage: str
    job: str
    element: Element | None
    """None once Slurm has forgotten the job."""
    status: StageStatus


def watch(recipe: Recipe) -> list[Watched]:
    """Every job of the newest submission. Raises UserError when there was none."""
    stages = {stage.name: stage for stage in read_status(recipe)}
    found = []
    for job in _submitted(recipe):
        elements = {element.job: element for element in elements_of(job.job)}
        for number, stage in enumerate(job.stages):
            name = (
                f"{job.job}_{number}" if len(elements) > 1 or job.job not in elements else job.job
            )
            element = elements.get(name) or elements.get(job.job) or _waiting(elements)
            found.append(Watched(stage, name if element else job.job, element, stages[stage]))
    return found


def _waiting(elements: dict[str, Element]) -> Element | None:
    """The record that stands for all elements of an array that have not begun."""
    return next((one for one in elements.values() if "[" in one.job), None)


def jobs_table(recipe: Recipe, watched: Sequence[Watched]) -> Table:
    """What `watch` found, for the console."""
    table = Table(
        Column("stage", no_wrap=True), Column("job", no_wrap=True), "in Slurm", "restarts",
        "the stage itself", Column("progress", no_wrap=True),
        title=f"{recipe.name}: its jobs", caption=f"Logs: {recipe.workdir / FOLDER}",
    )  # fmt: skip
    for one in watched:
        element, progress = one.element, one.status.progress
        table.add_row(
            one.stage,
            one.job,
            _state(element),
            str(element.restarts) if element else "",
            f"{one.status.state}: {one.status.why}" if one.status.why else str(one.status.state),
            f"step {progress.step} of {progress.steps or '?'}" if progress else "",
        )
    return table


def _state(element: Element | None) -> str:
    if element is None:
        return "ended, forgotten by Slurm"
    if element.state == "FAILED":
        return f"FAILED with exit code {element.exit_code.partition(':')[0]}"
    if element.state == "PENDING" and element.reason not in ("", "None"):
        return f"PENDING ({element.reason})"
    return f"{element.state} on {element.nodes}" if element.state == "RUNNING" else element.state


def cancel(recipe: Recipe) -> list[str]:
    """Take every job of the newest submission that has not ended out of Slurm; their numbers.

    Raises UserError when there was no submission.
    """
    going = [
        job.job
        for job in _submitted(recipe)
        if any(not element.ended for element in elements_of(job.job))
    ]
    if going:
        cancel_jobs(going)
    return going


def _submitted(recipe: Recipe) -> Sequence[Submitted]:
    jobs = read_submission(recipe)
    if not jobs:
        raise UserError(
            recipe.workdir, "no jobs", "a recipe that was submitted", "Use soaes slurm submit."
        )
    return jobs
