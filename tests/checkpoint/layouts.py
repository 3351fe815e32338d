"""Saves and loads in several layouts: `python -m tests.checkpoint.layouts FOLDER`.

Leaves FOLDER/saved/LAYOUT (three steps, checkpoints after the second and the last),
FOLDER/again/SAVED-LOADED (the second checkpoint, loaded and saved once more), FOLDER/delayed/LAYOUT
(a run that saves slowly in the background), FOLDER/losses-LAYOUT.json (of the step after a load)
and FOLDER/told-RANK.json (what ranks are told about each other's faults).
"""

from __future__ import annotations

import functools
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed import get_rank

from megatron_soaes import files
from megatron_soaes.accelerator.arrival import Arrivals
from megatron_soaes.accelerator.groups import model_parallel, world_rank
from megatron_soaes.checkpoint import directory, distributed, shard_writer
from megatron_soaes.checkpoint.megatron_arguments import megatron_arguments
from megatron_soaes.checkpoint.saver import CheckpointSaver
from megatron_soaes.recipe.training_settings import Checkpointing, Layout
from megatron_soaes.training.trainer import Trainer
from tests.checkpoint.ranks import run_ranks
from tests.training.material import make_job, make_material

LAYOUTS = {
    "one": Layout(),
    "dp2": Layout(data_parallel=2),
    "tp2": Layout(tensor_parallel=2),
    "tp2-sp": Layout(tensor_parallel=2, sequence_parallel=True),
    "pp2": Layout(pipeline_parallel=2),
}
SAVED = ("one", "tp2-sp", "dp2")
STEPS = 3
EVERY = 2
DEADLINE_S = 2.0


def trainer_in(folder: Path, out: Path, name: str, **checkpoints: Any) -> Trainer:
    """A trainer in the layout of that name, which must be active."""
    layout = LAYOUTS[name]
    settings = {"every": EVERY, **checkpoints}
    return Trainer(make_job(folder, out, layout=layout, steps=STEPS, checkpoints=settings))


def save_in(folder: Path, name: str) -> None:
    """The straight run, then the same with a writer that is late by more than a step."""
    layout = LAYOUTS[name]
    with model_parallel(layout.tensor_parallel, layout.pipeline_parallel):
        trainer_in(folder, folder / "saved" / name, name).run()
        write, step = shard_writer.write_shards, Trainer._step
        late = folder / f"late-{name}"

        def write_late(*args: Any) -> None:
            while not late.exists():
                time.sleep(0.01)
            write(*args)

        def next_step(trainer: Trainer, number: int) -> Any:
            result = step(trainer, number)
            if number == STEPS:
                late.touch()
            return result

        patch = pytest.MonkeyPatch()
        patch.setattr(shard_writer, "write_shards", write_late)
        patch.setattr(Trainer, "_step", next_step)
        trainer_in(folder, folder / "delayed" / name, name, asynchronous=True).run()


def load_in(folder: Path, name: str) -> None:
    """Load every saved checkpoint, save it again, and do the next step."""
    losses = {}
    layout = LAYOUTS[name]
    with model_parallel(layout.tensor_parallel, layout.pipeline_parallel):
        for saved in SAVED:
            out = folder / "runs" / f"{saved}-{name}"
            if world_rank() == 0:
                shutil.copytree(folder / "saved" / saved, out)
                directory.move_pointer(out / "checkpoints", EVERY)
            Arrivals().meet("copy")
            trainer = trainer_in(folder, out, name)
            job, state = trainer.job, trainer.state
            again = CheckpointSaver(folder / "again" / f"{saved}-{name}", Checkpointing())
            arguments = megatron_arguments(job.shape, job.source, job.layout, job.stage, state)
            again.save(trainer.engine.chunks, trainer.engine.optimizer, state, arguments)
            losses[f"{saved}-{name}"] = trainer._step(STEPS).loss
            # What is only in the checkpoint, the optimizer state, must not be in the way.
            distributed.load_weights(job.checkpoints, EVERY, trainer.engine.chunks)
    if world_rank() == 0:
        files.write_json(folder / f"losses-{name}.json", losses)


def wait_for_each_other(folder: Path) -> None:
    """Faults of rank 1 in saves and loads; every rank notes what it was told."""
    told: dict[str, str] = {}

    def note(name: str, work: Callable[[], object]) -> None:
        Arrivals().meet(name)
        try:
            work()
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
        (folder / f"{name} {get_rank()}").touch()
        # Nobody leaves before the slowest has noted what it was told.
        Arrivals().meet(f"end of {name}")

    def be_late(name: str) -> None:
        while get_rank() == 1 and not (folder / f"{name} 0").exists():
            time.sleep(0.01)

    with model_parallel(tensor=2):
        trainer = trainer_in(folder, folder / "arrivals", "tp2")
        trainer._step(1)
        trainer._save()
        job, engine, state = trainer.job, trainer.engine, trainer.state
        arguments = megatron_arguments(job.shape, job.source, job.layout, job.stage, state)

        def save(name: str, deadline_s: float, late: bool = False) -> None:
            saver = CheckpointSaver(folder / name, Checkpointing(deadline_s=deadline_s))
            if late:
                be_late("late for a save")
            saver.save(engine.chunks, engine.optimizer, state, arguments)

        def load() -> None:
            be_late("late for a load")
            distributed.load(job.checkpoints, 1, engine.chunks, engine.optimizer, DEADLINE_S)

        note("late for a save", lambda: save("late", DEADLINE_S, late=True))
        note("late for a load", load)
        if get_rank() == 1:
            filesystem_async._write_item = full_disk
        note("full disk", lambda: save("full", 60))
        filesystem_async._write_item = WRITE_ITEM
        note("after all", lambda: save("after", 60))
    files.write_json(folder / f"told-{get_rank()}.json", told)


WRITE_ITEM = filesystem_async._write_item


@functools.wraps(WRITE_ITEM)
def full_disk(*args: Any, **kwargs: Any) -> Any:
    raise OSError("no space left")


def main(folder: Path) -> None:
    log = folder / "log"
    work: list[tuple[int, Callable[[], object]]] = [
        (1, partial(make_material, folder)),
        *((LAYOUTS[name].processes, partial(save_in, folder, name)) for name in SAVED),
        *((layout.processes, partial(load_in, folder, name)) for name, layout in LAYOUTS.items()),
        (2, partial(wait_for_each_other, folder)),
    ]
    for processes, part in work:
        codes = run_ranks(processes, part, log)
        assert not any(codes), f"{part}: {codes}; see {log}.rank*"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
