"""`python -m tests.stages.killed RECIPE`: an evaluation that dies after its first answers."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from megatron_soaes.accelerator.groups import Rendezvous, process_group
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.stages import measuring
from megatron_soaes.stages.registry import stages_of


def die(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    measuring.score_questions = die  # type: ignore[assignment]
    recipe = load_recipe(Path(sys.argv[1]), ["compare.name=killed"])
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)):
        stages_of(recipe)["killed"].run()
