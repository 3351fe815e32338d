"""How far a run is: `soaes status`. Reads what the stages left; starts nothing, needs no torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.decision import BEGUN_FILE, Action, judge
from megatron_soaes.pipeline.gates import hold_to_gates
from megatron_soaes.pipeline.lock import is_at_work
from megatron_soaes.pipeline.manifest import Manifest, read_manifest
from megatron_soaes.pipeline.results import Results
from megatron_soaes.recipe.graph import steps_of
from megatron_soaes.recipe.schema import Recipe, TrainingStage
from megatron_soaes.stages.base import Plan
from megatron_soaes.stages.registry import stages_of
from megatron_soaes.training.records import METRICS_FILE, read_records

RECENT_STEPS = 20
"""Steps whose median time says how long the rest will take."""


class State(StrEnum):
    """Where a stage stands."""

    DONE = "done"
    CHANGED = "changed"
    """Done, with other settings or inputs than it has now: the next run does it again."""
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    WAITING = "waiting"
    BLOCKED = "blocked"
    """The next run would stop at it: a gate that does not hold, or inputs it would refuse."""


@dataclass(frozen=True)
class Progress:
    """How far training is."""

    step: int
    steps: int | None
    """None where packed data decides."""
    seconds_left: float | None
    figures: Mapping[str, float]
    """The newest training loss, and the newest held-out loss of each set."""


@dataclass(frozen=True)
class StageStatus:
    """One line of the table."""

    name: str
    state: State
    why: str
    """What changed or is wrong, else empty."""
    seconds: float | None
    """How long it took; None for a stage that is not done."""
    progress: Progress | None
    """None for a stage that has no steps, or none yet."""
    directory: Path


def read_status(recipe: Recipe) -> list[StageStatus]:
    """Every stage in its order. Raises UserError for a damaged manifest."""
    results = Results(recipe.workdir)
    unmade: list[Path] = []
    """Folders of stages that are not done."""
    found = []
    for name, stage in stages_of(recipe).items():
        manifest = read_manifest(stage.directory)
        try:
            plan = stage.plan()
            at_work = is_at_work(recipe.workdir, name)
            state, why = _state(plan, manifest, results, unmade, at_work)
            if state is State.DONE and manifest is not None:
                hold_to_gates(recipe, manifest, stage.directory)
                results.take(manifest)
        except UserError as error:
            state, why = State.BLOCKED, f"{error.where}: found {error.found}"
        if state is not State.DONE:
            unmade.append(stage.directory)
        progress = _progress(recipe, name, stage.directory, running=state is State.RUNNING)
        seconds = manifest.seconds if manifest else None
        found.append(StageStatus(name, state, why, seconds, progress, stage.directory))
    return found


def _state(
    plan: Plan, manifest: Manifest | None, results: Results, unmade: list[Path], at_work: bool
) -> tuple[State, str]:
    if manifest is None and (plan.directory / BEGUN_FILE).exists():
        return (State.RUNNING if at_work else State.INTERRUPTED), ""
    if any(path.is_relative_to(folder) for path in plan.inputs.values() for folder in unmade):
        return (State.CHANGED, "what it reads is made anew") if manifest else (State.WAITING, "")
    decision = judge(plan, manifest, results.input_hashes(plan))
    states = {Action.SKIP: State.DONE, Action.RUN_AGAIN: State.CHANGED}
    return states.get(decision.action, State.WAITING), decision.why


def _progress(recipe: Recipe, name: str, directory: Path, *, running: bool) -> Progress | None:
    settings = {stage.name: stage for stage in recipe.stages}.get(name)
    metrics = directory / METRICS_FILE
    if not isinstance(settings, TrainingStage) or not metrics.exists():
        return None
    records = read_records(metrics)
    steps = [record for record in records if "loss" in record]
    if not steps:
        return None
    figures = {"loss": float(steps[-1]["loss"])}
    for record in records:
        for held_out, one in record.get("validation", {}).items():
            figures[held_out] = float(one["loss"])
    planned, step = steps_of(recipe, settings), int(steps[-1]["step"])
    left = None
    if running and planned is not None:
        pace = statistics.median(record["seconds"] for record in steps[-RECENT_STEPS:])
        left = pace * (planned - step)
    return Progress(step, planned, left, figures)


def status_table(recipe: Recipe, stages: Sequence[StageStatus]) -> Table:
    """What `read_status` found, for the console."""
    table = Table(
        Column("stage", no_wrap=True), "state", Column("progress", no_wrap=True),
        Column("time", no_wrap=True), Column("losses", overflow="fold"),
        title=f"{recipe.name}: how far it is", caption=f"Files and logs: {recipe.workdir}/STAGE",
    )  # fmt: skip
    for stage in stages:
        progress = stage.progress
        table.add_row(
            stage.name,
            f"{stage.state}: {stage.why}" if stage.why else str(stage.state),
            _steps(progress) if progress else "",
            _time(stage),
            "\n".join(f"{n} {v:.4f}" for n, v in progress.figures.items()) if progress else "",
        )
    return table


def _steps(progress: Progress) -> str:
    if progress.steps is None:
        return f"step {progress.step}"
    return f"step {progress.step} of {progress.steps}"


def _time(stage: StageStatus) -> str:
    if stage.progress and stage.progress.seconds_left is not None:
        return f"{timedelta(seconds=round(stage.progress.seconds_left))} left"
    return "" if stage.seconds is None else str(timedelta(seconds=round(stage.seconds)))


def as_json(stages: Sequence[StageStatus]) -> list[dict[str, Any]]:
    """The same as data."""
    return [
        {
            "stage": stage.name,
            "state": str(stage.state),
            "why": stage.why,
            "seconds": stage.seconds,
            "progress": None if stage.progress is None else vars(stage.progress),
            "directory": str(stage.directory),
        }
        for stage in stages
    ]
