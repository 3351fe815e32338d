"""A rank that does what it is told: `python -m tests.slurm.stopping FOLDER BEHAVIOUR...`.

It saves when it is asked to stop, refuses its input, hangs, dies, or fails because another died.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from megatron_soaes.errors import ExitCode


def main(folder: Path, behaviours: list[str]) -> int:
    rank = int(os.environ["SLURM_PROCID"])
    asked = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, _: asked.append(received))
    (folder / f"begun{rank}").touch()
    if behaviours[rank] == "refuses":
        return ExitCode.BAD_INPUT
    if behaviours[rank] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviours[rank] == "fails":
        time.sleep(2)
        return ExitCode.FAILURE
    while not asked or behaviours[rank] == "hangs":
        time.sleep(0.1)
    time.sleep(2)
    (folder / f"saved{rank}").touch()
    return ExitCode.STOPPED


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
