"""Two ranks of which the second stalls or dies: `python -m tests.accelerator.stalling HOW`."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time

import torch

from megatron_soaes.accelerator.groups import (
    process_group,
    rendezvous_from_environment,
    world_rank,
)
from megatron_soaes.accelerator.watchdog import Watchdog


def main(how: str) -> None:
    faulthandler.enable()
    with process_group(rendezvous_from_environment()), Watchdog(2.0, "the test") as watchdog:
        for _ in range(3):
            torch.distributed.all_reduce(torch.ones(1))
            watchdog.beat()
        if world_rank() == 1:
            oversleep(how)
        torch.distributed.all_reduce(torch.ones(1))


def oversleep(how: str) -> None:
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1])
