"""Submit a recipe's jobs, each waiting for those whose results it reads."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_soaes import files
from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.slurm.commands import cancel_jobs, elements_of, require_slurm
from megatron_soaes.pipeline.slurm.jobs import Job, jobs_of
from megatron_soaes.pipeline.status import State, read_status
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.schema import Recipe

FOLDER = "slurm"
"""In a run's folder: the recipe the jobs read, their logs, their numbers."""
RECIPE_FILE = "recipe.json"
JOBS_FILE = "jobs.json"
SCRIPTS = Path(__file__).resolve().parents[3] / "slurm"
"""The scripts of this checkout."""
ENVIRONMENT_FILE = "environment.sh"
COMMON_FILE = "common.sh"
UNDER_ENVIRONMENT = 'set -a; . "$SOAES_ENVIRONMENT" >&2; exec "$@"'
"""sbatch reads SBATCH_PARTITION and the like from its environment: the file's settings. What the
file prints, as modules do, is no part of the answer."""


@dataclass(frozen=True)
class Submitted:
    """A job in Slurm's hands."""

    name: str
    job: str
    """Its number; of an array that of the whole."""
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """How one job is submitted, but for the numbers of the jobs that it waits for."""

    job: Job
    arguments: tuple[str, ...]
    script: tuple[str, ...]
    """The script and its arguments."""

    def words(self, numbers: Mapping[str, str]) -> list[str]:
        """The command line; `numbers` by the name of each job submitted before."""
        waits = ":".join(numbers[name] for name in self.job.after)
        dependency = [f"--dependency=afterok:{waits}"] if waits else []
        return ["sbatch", *dependency, *self.arguments, *self.script]


@dataclass(frozen=True)
class Chain:
    """All jobs of a recipe, ready to be submitted."""

    folder: Path
    commands: tuple[Command, ...]
    environment: Path
    done: tuple[str, ...]
    """Stages that need no job."""

    def ask(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm's under the chain's environment file."""
        require_slurm()
        return self.under_environment(words)

    def under_environment(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run any command under the chain's environment file."""
        variables = {
            **os.environ,
            "SOAES_SLURM_DIR": str(SCRIPTS),
            "SOAES_ENVIRONMENT": str(self.environment),
        }
        return subprocess.run(
            ["bash", "-c", UNDER_ENVIRONMENT, "bash", *words],
            env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def scripts(self) -> list[Path]:
        """The scripts of the jobs, and what they share."""
        used = dict.fromkeys(Path(command.script[0]) for command in self.commands)
        return [*used, SCRIPTS / COMMON_FILE]

    def dry_run(self) -> str:
        """A shell script of the commands `submit` runs; the jobs' scripts are comments in it."""
        lines = [
            "#!/usr/bin/env bash",
            f"# Stages that are done and need no job: {', '.join(self.done) or 'none'}.",
            f"# soaes slurm submit also writes {self.folder / RECIPE_FILE}, which the jobs read.",
            "set -euo pipefail",
            f"export SOAES_SLURM_DIR={shlex.quote(str(SCRIPTS))}",
            f"export SOAES_ENVIRONMENT={shlex.quote(str(self.environment))}",
            "set -a",
            "# shellcheck source=/dev/null",
            '. "$SOAES_ENVIRONMENT"',
            "set +a",
        ]
        numbers: dict[str, str] = {}
        for command in self.commands:
            words = " ".join(_quoted(word) for word in command.words(numbers))
            variable = f"job_{re.sub('-', '_', command.job.name)}"
            numbers[command.job.name] = f"${variable}"
            lines.append(f'{variable}=$({words})\necho "{command.job.name}: ${variable}"')
        for script in self.scripts():
            lines.append(f"\n# {script}:")
            lines += [f"#   {line}" for line in script.read_text(encoding="utf-8").splitlines()]
        return "\n".join(line.rstrip() for line in lines) + "\n"


def _quoted(word: str) -> str:
    """For a shell; a dependency holds variables, and nothing of a recipe but names."""
    return f'"{word}"' if word.startswith("--dependency=") else shlex.quote(word)


def chain_of(recipe: Recipe, environment: Path | None = None) -> Chain:
    """The jobs of the stages that are not done, and the commands that submit them.

    `environment` is by default the file of that name beside the scripts. Raises RecipeErrors for a
    recipe that breaks a rule, and UserError for one that is blocked or an environment that is not
    there.
    """
    check(recipe)
    stages = read_status(recipe)
    for stage in stages:
        if stage.state is State.BLOCKED:
            raise UserError(
                f"stage {stage.name}", stage.why, "a stage that can run", "Mend that first."
            )
    done = tuple(stage.name for stage in stages if stage.state is State.DONE)
    return chain_of_rest(recipe, done, environment)


def chain_of_rest(recipe: Recipe, done: tuple[str, ...], environment: Path | None = None) -> Chain:
    """The same for a recipe that is right, when it is known which stages are `done`."""
    settings = environment_file(environment)
    folder = recipe.workdir / FOLDER
    commands = tuple(_command(recipe, job, folder) for job in jobs_of(recipe, done))
    return Chain(folder, commands, settings, done)


def environment_file(named: Path | None) -> Path:
    """The environment file that is meant; UserError where there is none."""
    file = (named or SCRIPTS / ENVIRONMENT_FILE).resolve()
    if not file.is_file():
        raise UserError(
            file, "no file", "an environment file", "Copy and edit slurm/environment.sh."
        )
    return file


def _command(recipe: Recipe, job: Job, folder: Path) -> Command:
    log = str(folder).replace("%", "%%") + ("/%x-%A_%a.log" if job.is_array else "/%x-%j.log")
    arguments = [
        "--parsable",
        f"--job-name={recipe.name}-{job.name}",
        f"--output={log}",
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={job.tasks_per_node}",
        # One whose maker failed is cancelled, and with it what waits for it.
        "--kill-on-invalid-dep=yes",
    ]
    if job.gpus_per_node:
        arguments.append(f"--gpus-per-node={job.gpus_per_node}")
    if job.is_array:
        arguments.append(f"--array=0-{len(job.stages) - 1}")
    script = (str(SCRIPTS / job.script), str(folder / RECIPE_FILE), *job.stages)
    return Command(job, tuple(arguments), script)


def submit(recipe: Recipe, environment: Path | None = None) -> list[Submitted]:
    """Hand every job of the recipe to Slurm. Either all of them are in the queue, or none.

    Raises what `chain_of` raises, and UserError while jobs of an earlier submission are not ended
    and when Slurm refuses a job.
    """
    chain = chain_of(recipe, environment)
    _refuse_second(recipe)
    # Without the defaults: rules tell what was asked for from what was not.
    text = recipe.model_dump_json(indent=2, exclude_unset=True)
    files.write_text(chain.folder / RECIPE_FILE, text + "\n")
    submitted: list[Submitted] = []
    try:
        for command in chain.commands:
            submitted.append(_hand_over(chain, command, submitted))
            # At once: one that is not remembered could neither be seen nor cancelled.
            files.write_json(chain.folder / JOBS_FILE, [vars(one) for one in submitted])
    except BaseException:  # Ctrl-C, too
        if submitted:
            cancel_jobs([one.job for one in submitted])
        raise
    return submitted


def _hand_over(chain: Chain, command: Command, before: Sequence[Submitted]) -> Submitted:
    words = command.words({one.name: one.job for one in before})
    answer = chain.ask(words)
    if answer.returncode != 0:
        raise UserError(
            f"job {command.job.name}",
            answer.stderr.strip(),
            "that sbatch takes it",
            f"Nothing is in the queue. The command was: {shlex.join(words)}",
        )
    number = answer.stdout.strip().partition(";")[0]
    return Submitted(command.job.name, number, command.job.stages)


def _refuse_second(recipe: Recipe) -> None:
    jobs = read_submission(recipe)
    if any(not element.ended for job in jobs for element in elements_of(job.job)):
        raise UserError(
            recipe.workdir, "jobs of this recipe in the queue", "none",
            "See soaes slurm status; to submit anew, soaes slurm cancel first.",
        )  # fmt: skip


def read_submission(recipe: Recipe) -> list[Submitted]:
    """The jobs of the newest submission; empty when there was none."""
    file = recipe.workdir / FOLDER / JOBS_FILE
    if not file.exists():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [Submitted(one["name"], one["job"], tuple(one["stages"])) for one in content]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            file, f"a damaged list of jobs ({error})", "the JSON that soaes slurm submit writes",
            "Look with squeue whether jobs of this recipe are in the queue, then remove the file.",
        ) from None  # fmt: skip
