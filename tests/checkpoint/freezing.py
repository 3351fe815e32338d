"""Two ranks of which the second freezes while a save is planned: one rank of them.

`python -m tests.checkpoint.freezing FOLDER`
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from megatron.core import dist_checkpointing

from megatron_soaes.accelerator.groups import (
    model_parallel,
    process_group,
    rendezvous_from_environment,
    world_rank,
)
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.trainer import Trainer
from tests.training.material import make_job


def freeze(*args: object, **kwargs: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def main(folder: Path) -> None:
    with process_group(rendezvous_from_environment()), model_parallel(tensor=2):
        layout = Layout(tensor_parallel=2)
        settings = {"deadline_s": 3.0}
        trainer = Trainer(make_job(folder, folder / "run", "qwen3", layout, checkpoints=settings))
        if world_rank() == 1:
            dist_checkpointing.save = freeze
        trainer._step(1)
        trainer._save()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
