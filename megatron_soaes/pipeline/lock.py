"""One run at a time over a folder; a crash leaves no lock behind."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_soaes.errors import UserError

LOCK_FILE = ".lock"
ATTEMPTS = 5
SECONDS_BETWEEN_ATTEMPTS = 0.1


@contextmanager
def only_run_in(workdir: Path) -> Iterator[None]:
    """Hold the folder. Raises UserError when another run does; the lock goes with its process."""
    with (workdir / LOCK_FILE).open("w", encoding="utf-8") as lock:
        # More than one attempt, because `is_held` takes the lock for a moment.
        for _ in range(ATTEMPTS):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        else:
            raise UserError(
                workdir, "another run at work in it", "one run at a time",
                "Wait for it, or give this one another workdir.",
            )  # fmt: skip
        yield


def is_held(workdir: Path) -> bool:
    """Whether a run is at work in the folder at this moment."""
    file = workdir / LOCK_FILE
    if not file.exists():
        return False
    with file.open(encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
