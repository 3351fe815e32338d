"""Walk the stages of a recipe: skip what is done, go on with what was begun, run the rest."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_soaes import files
from megatron_soaes.accelerator.launch import launch
from megatron_soaes.accelerator.machine import Machine, read_machine
from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.pipeline.hashing import HashCache, files_below, tree_hash
from megatron_soaes.pipeline.manifest import (
    Manifest,
    Output,
    code_identity,
    describe_device,
    read_manifest,
    why_stale,
)
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.check_node import check_node, substitutions
from megatron_soaes.recipe.gates import Gate
from megatron_soaes.recipe.problems import RecipeErrors
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import Plan
from megatron_soaes.stages.registry import stages_of
from megatron_soaes.stages.worker import RESULT_FILE

RESOLVED_FILE = "recipe.resolved.json"
BEGUN_FILE = "begun.json"
"""Hashes of the inputs an unfinished stage was begun with."""


def run(recipe: Recipe) -> int:
    """Run every stage that is not done; returns an `ExitCode`.

    Raises RecipeErrors before anything starts when the recipe breaks a rule or this node cannot run
    it, and UserError for inputs that are missing or changed under an unfinished stage.
    """
    check(recipe)
    machine = read_machine()
    problems = check_node(recipe, machine)
    if problems:
        raise RecipeErrors(f"recipe '{recipe.name}' on this node", problems)
    console = Console(highlight=False)
    for substitution in substitutions(recipe, machine):
        console.print(f"  here: {substitution}", markup=False, soft_wrap=True)
    recipe.workdir.mkdir(parents=True, exist_ok=True)
    with _only_run_in(recipe.workdir):
        return Runner(recipe, machine, console).run()


class Runner:
    """One walk over the graph."""

    def __init__(self, recipe: Recipe, machine: Machine, console: Console) -> None:
        self.recipe = recipe
        self.machine = machine
        self.console = console
        self.hashes = HashCache(recipe.workdir / "hashes.json")
        self.outputs: dict[Path, str] = {}
        """Hash of every output of the stages walked so far, by its path."""

    def run(self) -> int:
        """Walk all stages in order; stops at the first that does not finish."""
        resolved = self.recipe.workdir / RESOLVED_FILE
        files.write_text(resolved, self.recipe.model_dump_json(indent=2) + "\n")
        for name, stage in stages_of(self.recipe).items():
            code = self._one(stage.plan(), resolved)
            if code != ExitCode.OK:
                self._say(f"{name}: ended with exit code {code} ({_meaning(code)})")
                return code
        self._say(f"done: all results are in {self.recipe.workdir}")
        return ExitCode.OK

    def _one(self, plan: Plan, resolved: Path) -> int:
        input_hashes = {name: self._input_hash(plan, name) for name in plan.inputs}
        manifest = read_manifest(plan.directory)
        if manifest is not None:
            stale = why_stale(manifest, plan, input_hashes)
            if stale is None:
                self._say(f"{plan.name}: unchanged, skipped")
                self._finish(plan, manifest)
                return ExitCode.OK
            self._say(f"{plan.name}: runs again ({stale}); {_set_aside(plan.directory)}")
        elif self._begun(plan, input_hashes):
            self._say(f"{plan.name}: goes on")
        else:
            self._say(f"{plan.name}: runs")
        return self._launch(plan, input_hashes, resolved)

    def _launch(self, plan: Plan, input_hashes: Mapping[str, str], resolved: Path) -> int:
        files.write_json(plan.directory / BEGUN_FILE, dict(input_hashes))
        started = datetime.now(UTC)
        code = launch(
            "megatron_soaes.stages.worker",
            [str(resolved), plan.name],
            plan.processes,
            plan.directory / "logs",
        )
        if code != ExitCode.OK:
            return code
        manifest = self._manifest(plan, input_hashes, started)
        manifest.write(plan.directory)
        self._finish(plan, manifest)
        return ExitCode.OK

    def _finish(self, plan: Plan, manifest: Manifest) -> None:
        """Remember the outputs for the stages to come, and hold the stage to its gates."""
        for output in manifest.outputs.values():
            self.outputs[Path(output.path)] = output.hash
        self.hashes.save()
        metrics = flat_metrics(manifest.metrics)
        for text in self._gates(plan.name):
            gate = Gate.parse(text)
            if not gate.holds(metrics):
                raise UserError(
                    f"stage {plan.name}, gate '{gate}'",
                    f"{gate.metric} = {metrics[gate.metric]:.6g}",
                    f"{gate.operator} {gate.bound:g}",
                    f"The run stops here; its results are in {plan.directory}.",
                )

    def _gates(self, name: str) -> list[str]:
        return [gate for stage in self.recipe.stages if stage.name == name for gate in stage.gates]

    def _input_hash(self, plan: Plan, name: str) -> str:
        path = plan.inputs[name]
        if path in self.outputs:
            return self.outputs[path]
        if not path.exists():
            raise UserError(
                f"stage {plan.name}, input {name}", f"nothing at {path}", "a file or folder",
                "Correct the path in the recipe.",
            )  # fmt: skip
        return self.hashes.of(path)

    def _begun(self, plan: Plan, input_hashes: Mapping[str, str]) -> bool:
        """Whether an unfinished run can be gone on with; what is of no use is removed."""
        begun = plan.directory / BEGUN_FILE
        if not begun.exists() or not plan.resumable:
            shutil.rmtree(plan.directory, ignore_errors=True)
            return False
        before = json.loads(begun.read_text(encoding="utf-8"))
        changed = sorted(
            name for name in {*before, *input_hashes} if before.get(name) != input_hashes.get(name)
        )
        if changed:
            raise UserError(
                f"stage {plan.name}", f"other inputs than it was begun with ({', '.join(changed)})",
                "the same inputs until it is finished",
                f"Restore them, or remove {plan.directory} to start the stage anew.",
            )  # fmt: skip
        return True

    def _manifest(self, plan: Plan, input_hashes: Mapping[str, str], started: datetime) -> Manifest:
        result = plan.directory / RESULT_FILE
        return Manifest(
            stage=plan.name,
            kind=plan.kind,
            config=dict(plan.config),
            inputs={
                name: {"path": str(path), "hash": input_hashes[name]}
                for name, path in plan.inputs.items()
            },
            outputs={name: self._output(path) for name, path in plan.outputs.items()},
            metrics=json.loads(result.read_text(encoding="utf-8")),
            code=code_identity(),
            versions=dict(self.machine.versions),
            device=describe_device(self.machine),
            processes=plan.processes,
            started=started.isoformat(),
            finished=datetime.now(UTC).isoformat(),
        )

    def _output(self, path: Path) -> Output:
        if path.is_file():
            return Output(str(path), self.hashes.of(path), {"": path.stat().st_size})
        below = {str(file.relative_to(path)): file for file in files_below(path)}
        return Output(
            str(path),
            tree_hash({name: self.hashes.of(file) for name, file in below.items()}),
            {name: file.stat().st_size for name, file in below.items()},
        )

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def flat_metrics(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics under dotted names, numbers only: what gates speak about."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flat_metrics(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def _set_aside(directory: Path) -> str:
    """Move the results of a stage that must run again out of the way; says where to."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    aside = directory.parent / "superseded" / f"{directory.name}-{stamp}"
    aside.parent.mkdir(exist_ok=True)
    directory.rename(aside)
    return f"the earlier results are kept in {aside}"


def _meaning(code: int) -> str:
    if code == ExitCode.STOPPED:
        return "stopped, its state is saved: the same command goes on"
    known = {member.value: member.name.lower().replace("_", " ") for member in ExitCode}
    return known.get(code, f"killed by signal {code - 128}" if code > 128 else "unknown")


@contextmanager
def _only_run_in(workdir: Path) -> Iterator[None]:
    """Refuse a second run over the same folder; the lock goes with the process that holds it."""
    with (workdir / ".lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                workdir, "another run at work in it", "one run at a time",
                "Wait for it, or give this one another workdir.",
            ) from None  # fmt: skip
        yield
