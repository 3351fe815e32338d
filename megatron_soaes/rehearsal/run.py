"""Play a recipe through in small: every stage, in processes of this machine, with its own code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from megatron_soaes import files
from megatron_soaes.accelerator.launch import end_with_starter
from megatron_soaes.accelerator.machine import read_machine
from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.pipeline.lock import only_run_in
from megatron_soaes.pipeline.manifest import read_manifest
from megatron_soaes.pipeline.slurm.submission import environment_file
from megatron_soaes.pipeline.status import State, read_status
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.check_node import NO_GPU, Substitution, substitutions
from megatron_soaes.recipe.gates import Gate
from megatron_soaes.recipe.graph import layout_of
from megatron_soaes.recipe.schema import (
    ModelName,
    PreciseStage,
    Recipe,
    RespondStage,
    TrainingStage,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Kernels, Layout
from megatron_soaes.rehearsal.gates import is_about_ability
from megatron_soaes.rehearsal.layouts import layout_text
from megatron_soaes.rehearsal.material import Material
from megatron_soaes.rehearsal.report import Failure, RehearsalReport, StageRun
from megatron_soaes.rehearsal.scripts import render_scripts
from megatron_soaes.rehearsal.shrink import shrink
from megatron_soaes.rehearsal.topologies import Rehearsed, runs_of
from megatron_soaes.stages.registry import stages_of

RECIPE_FILE = "recipe.json"
MATERIAL = "material"
SCRIPTS = "slurm"
ALWAYS_LEFT = (
    "speed and memory at the recipe's size, and what the models learn: the stand-ins are untrained",
    "NCCL, the network, the arithmetic of FP8, Transformer Engine, and the health of nodes",
    "degrees of parallelism above 2",
    "the real amount of text: a few records of each file, or invented ones",
    "submission itself: no job was given to Slurm",
    "the building of TensorRT-LLM engines",
)
"""What no rehearsal on a CPU can tell."""


def rehearse(recipe: Recipe, workdir: Path, environment: Path | None = None) -> RehearsalReport:
    """Run the recipe in small within `workdir`; the report is left there, too.

    Models, text and tasks are laid out in `workdir/material`; the runs are `workdir/run-1` and so
    on, each by `soaes run` with its progress on this terminal. Scripts of the recipe's own jobs are
    written to `workdir/slurm` with `environment`, that of `soaes slurm submit`. The same command
    goes on with what an earlier one left. Raises RecipeErrors when the recipe breaks a rule, and
    UserError for a file of the user's that cannot be read.
    """
    shapes = check(recipe)
    environment_file(environment)
    workdir = workdir.resolve()
    _refuse_a_folder_of_others(workdir)
    with only_run_in(workdir):
        return _rehearse(recipe, shapes, workdir, environment)


def _refuse_a_folder_of_others(workdir: Path) -> None:
    """What lies there may be a project of the user's, with folders of the names used here."""
    if workdir.exists() and not workdir.is_dir():
        found, fix = "a file", "Name another folder."
    elif workdir.is_dir() and any(workdir.iterdir()) and not (workdir / MATERIAL).is_dir():
        found, fix = "other files", "Name a new folder."
    else:
        return
    raise UserError(workdir, found, "an empty folder, or an earlier rehearsal's", fix)


def _rehearse(
    recipe: Recipe,
    shapes: Mapping[ModelName, ModelShape],
    workdir: Path,
    environment: Path | None,
) -> RehearsalReport:
    small, changes = shrink(recipe, shapes)
    material = Material(recipe, shapes, workdir / MATERIAL)
    small = material.lay_out(small)
    scripts = render_scripts(recipe, small, workdir / SCRIPTS, environment)
    runs = runs_of(small, workdir)
    code, ended = int(ExitCode.OK), len(runs)
    for number, one in enumerate(runs, 1):
        print(f"rehearsal of '{recipe.name}', run {number} of {len(runs)}", flush=True)
        code = _run(one.recipe)
        if code != ExitCode.OK:
            ended = number
            break
    report = RehearsalReport(
        recipe=recipe.name,
        workdir=workdir,
        stages=tuple(one for n, run in enumerate(runs, 1) for one in _stages(run, n)),
        material=tuple(material.notes),
        here=tuple(_by_other_means(recipe, small)),
        changes=tuple(changes.made),
        jobs=scripts.finding if scripts else None,
        not_rehearsed=tuple(_not_rehearsed(recipe, runs)),
        failure=_failure(runs[ended - 1], ended, code) if code != ExitCode.OK else None,
    )
    report.write()
    return report


def _run(recipe: Recipe) -> int:
    """`soaes run` on one small recipe, on the CPU wherever this is."""
    file = recipe.workdir.with_name(f"{recipe.workdir.name}-{RECIPE_FILE}")
    # Without the defaults: rules tell what was asked for from what was not.
    files.write_text(file, recipe.model_dump_json(indent=2, exclude_unset=True) + "\n")
    command = [sys.executable, "-m", "megatron_soaes", "run", str(file)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with (
        _wishes_to_stop() as wishes,
        # In a group of its own, so that an interrupt from the terminal reaches it once.
        subprocess.Popen(
            command,
            env=environment,
            process_group=0,
            preexec_fn=end_with_starter,  # noqa: PLW1509 (this process starts no threads)
        ) as process,
    ):
        wishes.pass_on_to(process)
        code = process.wait()
    return code if code >= 0 else 128 - code


class _Wishes:
    """Signals that ask for a stop: the run is to save its state and end, and then this does."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def __call__(self, received: int, _: object) -> None:
        if self._process is None:
            self._early.append(received)
        else:
            self._process.send_signal(received)

    def pass_on_to(self, process: subprocess.Popen[bytes]) -> None:
        """Send what came, and what comes."""
        self._process = process
        for received in self._early:
            process.send_signal(received)


@contextmanager
def _wishes_to_stop() -> Iterator[_Wishes]:
    wishes = _Wishes()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, wishes) for number in signals}
    try:
        yield wishes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stages(run: Rehearsed, number: int) -> Iterator[StageRun]:
    settings = {one.name: one for one in run.recipe.stages}
    for name, stage in stages_of(run.recipe).items():
        manifest = read_manifest(stage.directory)
        one = settings[name] if stage.plan().processes > 1 else None
        yield StageRun(
            run=number,
            name=name,
            kind=stage.kind,
            layout=layout_text(layout_of(run.recipe, one) if one else Layout()),
            rehearsed=name in run.stages or number == 1,
            seconds=manifest.seconds if manifest else None,
        )


def _failure(run: Rehearsed, number: int, code: int) -> Failure:
    """The first stage that is not done and where its ranks wrote."""
    for one in read_status(run.recipe):
        if one.state is not State.DONE:
            logs = one.directory / "logs"
            return Failure(number, one.name, code, logs if logs.is_dir() else one.directory)
    return Failure(number, None, code, run.recipe.workdir)


def _by_other_means(recipe: Recipe, small: Recipe) -> Iterator[str]:
    """What the small recipe uses on a CPU, and what had to be taken out of the recipe for it."""
    machine = replace(read_machine(), device="cpu")
    reason = "a rehearsal uses the CPU"
    found = [
        replace(one, reason=reason) if one.reason == NO_GPU else one
        for one in substitutions(small, machine)
    ]
    if any(isinstance(one, PreciseStage) and one.precision.fp8 for one in recipe.stages):
        found.append(Substitution("FP8 products", "bf16 products", reason))
    trained = [one for one in recipe.stages if isinstance(one, TrainingStage)]
    if any(one.optimizer.precision_aware for one in trained):
        found.append(Substitution("optimizer state in fewer bits", "fp32 state", reason))
    if any(one.kernels != Kernels() for one in trained):
        found.append(Substitution("fused kernels", "PyTorch's", reason))
    if any(one.overlap.tensor_parallel for one in trained):
        found.append(Substitution("exchanges within products", "exchanges between them", reason))
    yield from map(str, found)


def _not_rehearsed(recipe: Recipe, runs: list[Rehearsed]) -> Iterator[str]:
    """What this recipe asks for and a rehearsal cannot show."""
    yield from ALWAYS_LEFT
    if len(runs) > 1:
        names = ", ".join(runs[1].stages)
        yield f"four dimensions at once, of which each pair was in one of the runs: {names}"
    for one in recipe.stages:
        if isinstance(one, RespondStage) and one.backend == "endpoint":
            yield f"the server that {one.name} asks; its answers were written here"
        for gate in map(Gate.parse, one.gates):
            said = "left out" if is_about_ability(gate) else "measured, not held to its bound"
            yield f"gate '{gate}' of {one.name}: {said}"
    for model in (recipe.models.target, recipe.models.draft):
        if model is not None and model.weights is not None:
            yield f"the reading of the Megatron-LM checkpoint {model.weights}"
    if left := [one for one in recipe.evaluation.targets if "[" in one]:
        yield f"targets about parts of a suite: {', '.join(left)}"
