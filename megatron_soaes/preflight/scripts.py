"""Whether Slurm would take the jobs of a recipe."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.slurm.commands import slurm
from megatron_soaes.pipeline.slurm.submission import SCRIPTS, Chain, chain_of, chain_of_rest
from megatron_soaes.preflight.findings import Found
from megatron_soaes.recipe.schema import Recipe


def check_scripts(recipe: Recipe, environment: Path | None, *, files_elsewhere: bool) -> Found:
    """Render every job; let bash, shellcheck and sbatch read them, as far as they are here."""
    if files_elsewhere:
        chain = chain_of_rest(_with_any_text(recipe), (), environment)
    else:
        chain = chain_of(recipe, environment)
    yield f"{len(chain.commands)} jobs; {len(chain.done)} stages are done and need none"
    readers = [["bash", "-n"], *([["shellcheck", "-x"]] if shutil.which("shellcheck") else [])]
    for reader in readers:
        yield from _unreadable([*reader, "-"], chain.dry_run(), "the commands")
        for script in chain.scripts():
            yield from _unreadable([*reader, str(script)], "", script.name)
        yield f"{reader[0]} has read the commands and {len(chain.scripts())} scripts"
    if shutil.which("scontrol") and slurm(["scontrol", "ping"]).returncode == 0:
        yield from _taken(chain)
    else:
        yield "no Slurm answers here: whether it takes the jobs is not known"


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


def _unreadable(command: list[str], text: str, what: str) -> Found:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, cwd=SCRIPTS.parent
    )
    if done.returncode != 0:
        yield UserError(
            what, (done.stdout + done.stderr).strip(), f"a script that {command[0]} reads",
            "Correct the environment file, or report this.",
        )  # fmt: skip


def _taken(chain: Chain) -> Found:
    for command in chain.commands:
        answer = chain.ask(["sbatch", "--test-only", *command.arguments, *command.script])
        if answer.returncode != 0:
            yield UserError(
                f"job {command.job.name}", answer.stderr.strip(), "that sbatch takes it",
                "Correct the environment file, or the recipe's cluster.",
            )  # fmt: skip
    yield f"sbatch --test-only was asked about {len(chain.commands)} jobs"
