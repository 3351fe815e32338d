"""Signals that ask a run to save and end."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """Remembers that SIGTERM, SIGINT or SIGUSR1 arrived; the loop ends at the next step's end.

    Slurm sends SIGUSR1 before a time limit when the job script asks for it (`--signal`).
    """

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True
