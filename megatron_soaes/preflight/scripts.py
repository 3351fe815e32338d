"""Whether Slurm would take the jobs of a recipe."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.slurm.commands import slurm
from megatron_soaes.pipeline.slurm.submission import (
    SCRIPTS,
    Chain,
    chain_of,
    chain_of_rest,
)
from megatron_soaes.preflight.findings import Found
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.wording import counted

NEEDED = ("SOAES", "SOAES_PYTHON")
"""Variables that an environment file sets, or finds set: no job starts without them."""


def chain_to_check(recipe: Recipe, environment: Path | None, *, files: bool) -> Chain:
    """The jobs as they would be submitted; without the `files` of the run those of all stages."""
    if files:
        return chain_of(recipe, environment)
    return chain_of_rest(_with_any_text(recipe), (), environment)


def _with_any_text(recipe: Recipe) -> Recipe:
    """The recipe with a file that exists as its text: a job's script depends on no more of it."""
    here = {"text": [__file__]}
    chats = {"conversations": [__file__]}
    datasets = {
        name: one.model_copy(update=(chats if one.is_chat else here) if one.files else {})
        for name, one in recipe.data.datasets.items()
    }
    data = recipe.data.model_copy(update={"datasets": datasets})
    return recipe.model_copy(update={"data": data})


def check_scripts(chain: Chain) -> Found:
    """Let bash, shellcheck and sbatch read every job, as far as they are here."""
    done = counted(len(chain.done), "stage")
    yield f"{counted(len(chain.commands), 'job')}; {done} done already, which need none"
    wrong = _unreadable(chain) or _unset(chain)
    yield from wrong
    if not wrong:
        scripts = counted(len(chain.scripts()), "script")
        yield f"bash has read the environment file, the commands and {scripts}"
    if shutil.which("scontrol") and slurm(["scontrol", "ping"]).returncode == 0:
        yield from _taken(chain)
    else:
        yield "no Slurm answers here: whether it takes the jobs is not known"


def _unreadable(chain: Chain) -> list[UserError]:
    readers = [["bash", "-n"], *([["shellcheck", "-x"]] if shutil.which("shellcheck") else [])]
    texts = [("-", chain.dry_run(), "the commands")]
    texts += [(str(file), "", str(file)) for file in (chain.environment, *chain.scripts())]
    wrong = []
    for reader in readers:
        for argument, text, what in texts:
            done = subprocess.run(
                [*reader, argument], input=text, capture_output=True, text=True, check=False,
                cwd=SCRIPTS.parent,
            )  # fmt: skip
            if done.returncode != 0:
                found = (done.stdout + done.stderr).strip()
                fix = "Correct the environment file, or report this."
                wrong.append(UserError(what, found, f"a script that {reader[0]} reads", fix))
    return wrong


def _unset(chain: Chain) -> list[UserError]:
    """Much that is no environment file, such as a recipe, is a script for bash all the same."""
    missing = [name for name in NEEDED if chain.under_environment(["printenv", name]).returncode]
    found = f"a file that leaves {' and '.join(missing)} unset"
    expected, fix = "what slurm/environment.sh sets", "Copy and edit that one; name your copy."
    return [UserError(chain.environment, found, expected, fix)] if missing else []


def _taken(chain: Chain) -> Found:
    wrong = []
    for command in chain.commands:
        answer = chain.ask(["sbatch", "--test-only", *command.arguments, *command.script])
        if answer.returncode != 0:
            where, fix = f"job {command.job.name}", "Correct the environment file or the cluster."
            wrong.append(UserError(where, answer.stderr.strip(), "that sbatch takes it", fix))
    yield from wrong
    if not wrong:
        yield f"sbatch --test-only takes {counted(len(chain.commands), 'job')}"
