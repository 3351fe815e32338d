"""One run at a time over a folder, one process at a time over a stage; a crash leaves no lock."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from megatron_soaes.errors import UserError

LOCK_FILE = ".lock"
STAGE_LOCKS = ".locks"
ATTEMPTS = 5
SECONDS_BETWEEN_ATTEMPTS = 0.1


@contextmanager
def only_run_in(workdir: Path, *, beside_others: bool = False) -> Iterator[None]:
    """Hold the folder. Raises UserError when another run does; the lock goes with its process.

    Runs of single stages hold it `beside_others` of their kind, as the jobs of a chain do.
    """
    kind = fcntl.LOCK_SH if beside_others else fcntl.LOCK_EX
    with _held(
        workdir / LOCK_FILE, kind, workdir, "Wait for it, or give this one another workdir."
    ):
        yield


@contextmanager
def only_run_of(workdir: Path, stage: str) -> Iterator[None]:
    """Hold a stage. Raises UserError when another process is at work on it."""
    file = workdir / STAGE_LOCKS / stage
    with _held(file, fcntl.LOCK_EX, f"stage {stage} in {workdir}", "Wait for it."):
        yield


@contextmanager
def _held(file: Path, kind: int, where: Path | str, fix: str) -> Iterator[None]:
    with _opened(file) as lock:
        # More than one attempt, because `is_at_work` takes the lock for a moment.
        for _ in range(ATTEMPTS):
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        else:
            raise UserError(where, "another run at work in it", "one run at a time", fix)
        yield


def _opened(file: Path) -> TextIO:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(
            file.parent, f"no folder to write to ({error.strerror})",
            "one, or a place where it can be made", "Choose another workdir, or make way for it.",
        ) from error  # fmt: skip


def is_at_work(workdir: Path, stage: str) -> bool:
    """Whether a process is at work on the stage at this moment."""
    file = workdir / STAGE_LOCKS / stage
    if not file.exists():
        return False
    with file.open(encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
