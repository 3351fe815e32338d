"""Walk the stages of a recipe: skip what is done, go on with what was begun, run the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from megatron_soaes import files
from megatron_soaes.accelerator.launch import Launcher, launch
from megatron_soaes.accelerator.machine import Machine, read_machine
from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.failpoints import check_failpoint, failpoint
from megatron_soaes.pipeline.decision import BEGUN_FILE, Action, Decision, decide
from megatron_soaes.pipeline.dependencies import all_before, makers_of
from megatron_soaes.pipeline.gates import hold_to_gates
from megatron_soaes.pipeline.hashing import files_below, tree_hash
from megatron_soaes.pipeline.lock import only_run_in, only_run_of
from megatron_soaes.pipeline.manifest import (
    Manifest,
    Output,
    code_identity,
    describe_device,
)
from megatron_soaes.pipeline.results import Results
from megatron_soaes.pipeline.selection import ALL_STAGES, Selection
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.check_node import check_node, substitutions
from megatron_soaes.recipe.problems import RecipeErrors
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import Plan
from megatron_soaes.stages.registry import stages_of
from megatron_soaes.stages.worker import RESULT_FILE

RESOLVED_FILE = "recipe.resolved.json"


def run(
    recipe: Recipe,
    selection: Selection = ALL_STAGES,
    *,
    dry_run: bool = False,
    launcher: Launcher = launch,
) -> int:
    """Run every stage that is asked for and not done; returns an `ExitCode`.

    With `dry_run` it only prints what it would do, and why. `launcher` starts the ranks. Raises
    RecipeErrors before anything starts when the recipe breaks a rule or this node cannot run it,
    and UserError for inputs that are missing or changed under an unfinished stage, and for a
    selection that cannot be.
    """
    check_failpoint()
    check(recipe)
    stages = stages_of(recipe)
    names_before, names_asked = selection.split(list(stages))
    machine = read_machine()
    problems = check_node(recipe, machine)
    if problems:
        raise RecipeErrors(f"recipe '{recipe.name}' on this node", problems)
    console = Console(highlight=False)
    for substitution in substitutions(recipe, machine):
        console.print(f"  here: {substitution}", markup=False, soft_wrap=True)
    runner = Runner(recipe, machine, console, launcher)
    plans = {name: stages[name].plan() for name in (*names_before, *names_asked)}
    if selection.only is not None:
        names_before = all_before(selection.only, plans)
    before, asked = ([plans[name] for name in names] for names in (names_before, names_asked))
    if dry_run:
        runner.tell(before, asked, selection.forced)
        return ExitCode.OK
    with only_run_in(recipe.workdir, beside_others=selection.only is not None):
        return runner.run(before, asked, selection.forced)


class Runner:
    """One walk over the graph."""

    def __init__(
        self, recipe: Recipe, machine: Machine, console: Console, launcher: Launcher
    ) -> None:
        self.recipe = recipe
        self.machine = machine
        self.console = console
        self.launcher = launcher
        self.results = Results(recipe.workdir)

    def run(self, before: Sequence[Plan], asked: Sequence[Plan], forced: Collection[str]) -> int:
        """Walk the stages in order; stops at the first that does not finish.

        Those `before` must be done; raises UserError for one that is not.
        """
        resolved = self.recipe.workdir / RESOLVED_FILE
        files.write_text(resolved, self.recipe.model_dump_json(indent=2) + "\n")
        self._take_up(before)
        for plan in asked:
            with only_run_of(self.recipe.workdir, plan.name):
                code = self._one(plan, resolved, plan.name in forced)
            if code != ExitCode.OK:
                self._say(f"{plan.name}: ended with exit code {code} ({_meaning(code)})")
                return code
        self._say(f"done: all results are in {self.recipe.workdir}")
        return ExitCode.OK

    def tell(self, before: Sequence[Plan], asked: Sequence[Plan], forced: Collection[str]) -> None:
        """Say what `run` would do, and why, without doing it."""
        self._take_up(before)
        would_run: dict[str, Plan] = {}
        for plan in asked:
            if made := makers_of(plan, would_run):
                self._say(f"{plan.name}: would run with what comes of {', '.join(made)}")
            else:
                decision = decide(plan, self.results.input_hashes(plan), forced=plan.name in forced)
                self._say(f"{plan.name}: {_would(decision)}")
                if decision.action is Action.SKIP:
                    self._pass(plan, decision)
                    continue
            would_run[plan.name] = plan

    def _take_up(self, before: Sequence[Plan]) -> None:
        """Remember the results of stages that are not to run. Raises UserError if one must."""
        for plan in before:
            decision = decide(plan, self.results.input_hashes(plan))
            if decision.action is not Action.SKIP:
                why = decision.why or "it is not finished"
                raise UserError(
                    f"stage {plan.name}, which comes before", why, "it done and unchanged",
                    f"Begin with it: --from {plan.name}.",
                )  # fmt: skip
            self._pass(plan, decision)

    def _one(self, plan: Plan, resolved: Path, forced: bool) -> int:
        input_hashes = self.results.input_hashes(plan)
        decision = decide(plan, input_hashes, forced=forced)
        again = decision.action is Action.RUN_AGAIN
        aside = f"; {_set_aside(plan.directory)}" if again else ""
        self._say(f"{plan.name}: {decision}{aside}")
        if decision.action is Action.SKIP:
            self._pass(plan, decision)
            self.results.hashes.save()
            return ExitCode.OK
        self.results.refuse_altered(plan)
        if decision.action is Action.RUN:
            # What an interrupted run left is of no use to one that starts anew.
            shutil.rmtree(plan.directory, ignore_errors=True)
        return self._launch(plan, input_hashes, resolved)

    def _pass(self, plan: Plan, decision: Decision) -> None:
        """Go by a stage that is done and unchanged."""
        assert decision.manifest is not None
        self._finish(plan, decision.manifest)

    def _launch(self, plan: Plan, input_hashes: Mapping[str, str], resolved: Path) -> int:
        files.write_json(plan.directory / BEGUN_FILE, dict(input_hashes))
        started = datetime.now(UTC)
        code = self.launcher(
            "megatron_soaes.stages.worker",
            [str(resolved), plan.name],
            plan.processes,
            plan.directory / "logs",
        )
        if code != ExitCode.OK:
            return code
        manifest = self._manifest(plan, input_hashes, started)
        manifest.write(plan.directory)
        failpoint("between-stages")
        self.results.hashes.save()
        self._report()
        self._finish(plan, manifest)
        return ExitCode.OK

    def _report(self) -> None:
        """Let the page grow; what is wrong with a page ends no run."""
        try:
            # Its statistics take a second to import.
            from megatron_soaes.pipeline.report.page import write_report

            write_report(self.recipe)
        except Exception as error:
            self._say(f"report.html was not written: {error}")

    def _finish(self, plan: Plan, manifest: Manifest) -> None:
        """Remember the outputs for the stages to come, and hold the stage to its gates."""
        self.results.take(manifest)
        hold_to_gates(self.recipe, manifest, plan.directory)

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
            return Output(str(path), self.results.hashes.of(path), {"": path.stat().st_size})
        below = {str(file.relative_to(path)): file for file in files_below(path)}
        return Output(
            str(path),
            tree_hash({name: self.results.hashes.of(file) for name, file in below.items()}),
            {name: file.stat().st_size for name, file in below.items()},
        )

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def _would(decision: Decision) -> str:
    """A decision as a dry run tells it."""
    words = {
        Action.SKIP: "unchanged, would be skipped",
        Action.GO_ON: "would go on",
        Action.RUN: "would run",
        Action.RUN_AGAIN: f"would run again ({decision.why})",
    }
    return words[decision.action]


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
