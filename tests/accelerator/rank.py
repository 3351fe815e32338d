"""A rank that does what it is told: `python -m tests.accelerator.rank FOLDER BEHAVIOUR...`.

The behaviour of rank N is the N-th word. No torch.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")

WAITING = ("listen", "sleep", "deaf")
"""Behaviours of ranks that stay until they are ended, and leave a file when nobody does."""


def main(folder: Path, behaviours: list[str]) -> None:
    rank = int(os.environ["RANK"])
    print(f"this is rank {rank}", flush=True)
    values = [f"{name}={os.environ[name]}" for name in VARIABLES]
    (folder / f"environment{rank}").write_text("\n".join(values))
    behaviour = behaviours[rank]

    def note(number: int, frame: FrameType | None) -> None:
        (folder / f"signal{rank}").write_text(str(number))
        sys.exit(0)

    if behaviour in WAITING:
        if behaviour == "listen":
            for number in (signal.SIGUSR1, signal.SIGTERM):
                signal.signal(number, note)
        elif behaviour == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / f"ready{rank}").write_text(str(os.getpid()))
        time.sleep(30)
        (folder / f"forgotten{rank}").touch()
    elif behaviour.startswith("signal"):
        wait_for_others(folder, behaviours)
        os.kill(os.getpid(), int(behaviour.removeprefix("signal")))
    else:
        wait_for_others(folder, behaviours)
        sys.exit(int(behaviour))


def wait_for_others(folder: Path, behaviours: list[str]) -> None:
    """Until those that only wait are there."""
    waiting = [i for i, b in enumerate(behaviours) if b in WAITING]
    while not all((folder / f"ready{i}").exists() for i in waiting):
        time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
