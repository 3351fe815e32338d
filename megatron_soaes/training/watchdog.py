"""End a rank that makes no progress, with the reason in its log."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

from megatron_soaes.errors import ExitCode

POLL_S = 0.5


class Watchdog:
    """Ends this process when `beat` is not called for `timeout_s` seconds.

    Every rank has its own: when one stalls, the others wait for it in a collective, so all of them
    write the stacks of their threads to stderr and end with `ExitCode.STALLED` at about the same
    time. Use as a context manager around the work.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Say that there was progress."""
        self._last = time.monotonic()

    def __enter__(self) -> Watchdog:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(min(POLL_S, self._timeout_s)):
            if time.monotonic() - self._last > self._timeout_s:
                self._end()

    def _end(self) -> None:
        rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
        print(
            f"error: rank {rank}: no progress for {self._timeout_s:g} s; where each thread is:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        # Threads stuck in a collective would keep an orderly exit waiting for ever.
        os._exit(ExitCode.STALLED)
