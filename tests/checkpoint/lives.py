"""Runs that are killed again and again: `python -m tests.checkpoint.lives FOLDER`.

For each layout one run is done without interruption, and the same run in many lives: each one goes
on where the last one was killed, and is killed itself in its second save, at another point. Leaves
FOLDER/LAYOUT/{straight,killed}, and FOLDER/lives.json about what was found after each death.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_soaes import files
from megatron_soaes.accelerator.groups import model_parallel, world_rank
from megatron_soaes.checkpoint import directory, shard_writer
from megatron_soaes.checkpoint.shard_writer import ShardWriter
from megatron_soaes.checkpoint.verify import verify
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.trainer import Trainer
from tests.checkpoint.ranks import run_ranks
from tests.training.material import make_job, make_material

LAYOUTS = {"one": Layout(), "tp2-sp": Layout(tensor_parallel=2, sequence_parallel=True)}
STEPS = 24
EVERY = 2
KILLED_SAVE = 2
"""Which save of a life is its last."""
PATCH = pytest.MonkeyPatch()
"""Of processes that end without undoing it."""


@dataclass
class Life:
    """What was found after a death."""

    point: str
    codes: list[int]
    pointer: int | None
    complete: list[int]
    """Iterations that have a folder, all of them undamaged."""
    damages: list[str]
    unfinished: list[str]
    """Kinds of the leftovers."""


class Trap:
    """Kills this rank at a point of its `KILLED_SAVE`-th save."""

    def __init__(self, folder: Path) -> None:
        self.trainer = os.getpid()
        self.folder = folder
        self.saves = 0
        PATCH.setattr(ShardWriter, "__init__", self._counting(ShardWriter.__init__))

    def _counting(self, original: Callable[..., None]) -> Callable[..., None]:
        def init(writer: Any, *args: Any, **kwargs: Any) -> None:
            self.saves += 1
            original(writer, *args, **kwargs)

        return init

    @property
    def armed(self) -> bool:
        return self.saves >= KILLED_SAVE

    def kill(self) -> None:
        os.kill(self.trainer, signal.SIGKILL)


def before_a_shard_write(trap: Trap) -> None:
    """The writer outlives its trainer, and writes nonsense while the next life saves that step."""
    original = shard_writer.write_shards

    def write(write: Any, rank: int, buckets: list[Any], sender: Any) -> None:
        if trap.armed:
            trap.kill()
            be_an_orphan([Path(file) for file, _, _ in buckets])
            (trap.folder / "an_orphan_wrote").touch()
            os._exit(0)
        original(write, rank, buckets, sender)

    PATCH.setattr(shard_writer, "write_shards", write)


def be_an_orphan(shards: list[Path]) -> None:
    """Write to these files from when the next life saves the same iteration until it is there."""
    own = shards[0].parent
    iteration = own.name.split(".")[1]
    while own.exists():
        time.sleep(0.001)
    while not any(own.parent.glob(f".{iteration}.tmp-*")):
        time.sleep(0.001)
    while not (own.parent / iteration).exists():
        own.mkdir(exist_ok=True)
        for shard in shards:
            shard.write_bytes(b"nonsense")


def in_a_shard_write(trap: Trap) -> None:
    """The trainer and its writers die together after a few tensors."""
    original = filesystem_async._write_item
    written = 0

    @functools.wraps(original)
    def write_item(*args: Any, **kwargs: Any) -> Any:
        nonlocal written
        written += 1
        if trap.armed and written == 5:
            os.killpg(trap.trainer, signal.SIGKILL)
        return original(*args, **kwargs)

    PATCH.setattr(filesystem_async, "_write_item", write_item)


def before_the_rename(trap: Trap) -> None:
    original = files.publish_directory

    def publish(temporary: Path, path: Path) -> None:
        if trap.armed and path.name.startswith("iter_"):
            trap.kill()
        original(temporary, path)

    PATCH.setattr(files, "publish_directory", publish)


def before_the_pointer(trap: Trap) -> None:
    original = directory.move_pointer

    def move(root: Path, iteration: int) -> None:
        if trap.armed:
            trap.kill()
        original(root, iteration)

    PATCH.setattr(directory, "move_pointer", move)


def while_old_ones_are_deleted(trap: Trap) -> None:
    original = shutil.rmtree

    def remove(path: Path, **kwargs: Any) -> None:
        if trap.armed and "trash" in str(path):
            next(path.glob("*.distcp")).unlink()
            trap.kill()
        original(path, **kwargs)

    PATCH.setattr(shutil, "rmtree", remove)


def in_the_background(trap: Trap) -> None:
    """Training goes on beside a writer that only writes when its trainer has been killed."""
    original = shard_writer.write_shards
    step = Trainer._step

    def write(write: Any, rank: int, buckets: list[Any], sender: Any) -> None:
        while trap.armed and os.getppid() == trap.trainer:
            time.sleep(0.01)
        original(write, rank, buckets, sender)

    def next_step(trainer: Trainer, number: int) -> Any:
        result = step(trainer, number)
        if trap.armed:
            trap.kill()
        return result

    PATCH.setattr(shard_writer, "write_shards", write)
    PATCH.setattr(Trainer, "_step", next_step)


POINTS: dict[str, tuple[Callable[[Trap], None], dict[str, Any], int]] = {
    "before a shard write": (before_a_shard_write, {}, -1),
    "in a shard write": (in_a_shard_write, {}, -1),
    "before the rename": (before_the_rename, {}, 0),
    "before the pointer moves": (before_the_pointer, {}, 0),
    "while old ones are deleted": (while_old_ones_are_deleted, {"keep_last": 1}, 0),
    "in the background": (in_the_background, {"asynchronous": True}, -1),
}
"""How, with which settings, and on which rank (-1: the last)."""


def live(
    folder: Path, name: str, layout: Layout, point: str | None = None, **settings: Any
) -> None:
    """One rank of one life."""
    with model_parallel(layout.tensor_parallel):
        job = make_job(
            folder,
            folder / name,
            layout=layout,
            steps=STEPS,
            checkpoints={"every": EVERY, "deadline_s": 60, **settings},
        )
        if point is not None:
            install, _, rank = POINTS[point]
            if world_rank() == rank % layout.processes:
                install(Trap((folder / name).parent))
        Trainer(job).run()


def killed_after(seconds: float, metrics: Path) -> Callable[[], bool]:
    """Says so once, this long after the life has begun to train."""
    before = metrics.stat().st_mtime_ns
    begun: list[float] = []

    def due() -> bool:
        if not begun and metrics.stat().st_mtime_ns != before:
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] > seconds

    return due


def found(point: str, codes: list[int], root: Path) -> Life:
    """What is under `root` now."""
    complete = directory.iterations(root)
    return Life(
        point=point,
        codes=codes,
        pointer=directory.latest_iteration(root),
        complete=complete,
        damages=[str(d) for i in complete for d in verify(root, i).damages],
        unfinished=sorted({p.name.split(".")[2].split("-")[0] for p in root.glob(".iter_*")}),
    )


def all_lives(folder: Path, layout: str, generator: random.Random) -> list[Life]:
    """The straight run, then the killed one; returns what was found in between."""
    wanted = LAYOUTS[layout]
    log = folder / f"{layout}.log"
    killed = f"{layout}/killed"
    run_ranks(wanted.processes, lambda: live(folder, f"{layout}/straight", wanted), log)
    root = folder / killed / "checkpoints"
    lives = []
    for point, (_, settings, _) in POINTS.items():
        work = functools.partial(live, folder, killed, wanted, point, **settings)
        lives.append(found(point, run_ranks(wanted.processes, work, log), root))
    for seconds in (generator.uniform(0, 0.8) for _ in range(3)):
        work = functools.partial(
            live, folder, killed, wanted, asynchronous=generator.random() < 0.5
        )
        kill = killed_after(seconds, folder / killed / "metrics.jsonl")
        codes = run_ranks(wanted.processes, work, log, kill)
        lives.append(found(f"after {seconds:.2f} s", codes, root))
    codes = run_ranks(wanted.processes, lambda: live(folder, killed, wanted), log)
    return [*lives, found("end", codes, root)]


def main(folder: Path) -> None:
    assert run_ranks(1, lambda: make_material(folder), folder / "material.log") == [0]
    seed = random.randrange(1000)
    lives = {name: all_lives(folder, name, random.Random(seed)) for name in LAYOUTS}
    found = {name: [asdict(life) for life in run] for name, run in lives.items()}
    files.write_json(folder / "lives.json", {"seed": seed, **found})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
