"""End a rank that makes no progress, and say where all ranks are."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store, _get_default_store

from megatron_soaes.errors import ExitCode

POLL_S = 0.5
SIGN_S = 5.0
"""How long the others' signs of life are waited for."""


class Watchdog:
    """Ends this process when `beat` is not called for `timeout_s` seconds.

    Every rank has its own: when one stalls, the others wait for it in a collective, so all of them
    write the stacks of their threads to stderr and end with `ExitCode.STALLED` at about the same
    time. Each then tells the others where it is, so every log names the ranks that were elsewhere
    or that gave no sign at all. Use as a context manager around the work.
    """

    def __init__(self, timeout_s: float, work: str) -> None:
        """`work` says in a few words what is being watched; the same on every rank."""
        self._timeout_s = timeout_s
        self._work = work
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
        _say(f"error: rank {rank}: no progress for {self._timeout_s:g} s in {self._work}")
        _say("where each thread of this rank is:")
        faulthandler.dump_traceback(all_threads=True)
        # Only now: the rank that has heard from all ends, and the launcher then ends the others.
        for line in _where_ranks_are(self._work):
            _say(f"  {line}")
        # Threads stuck in a collective would keep an orderly exit waiting for ever.
        os._exit(ExitCode.STALLED)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _where_ranks_are(work: str) -> list[str]:
    """A line for each rank: where its main thread is, or that it gave no sign."""
    if not torch.distributed.is_initialized():
        return []
    ranks, mine = torch.distributed.get_world_size(), torch.distributed.get_rank()
    try:
        # The main thread may be waiting on its own connection to the store.
        store: Store = _get_default_store().clone()  # type: ignore[attr-defined]
        store.set_timeout(timedelta(seconds=SIGN_S))
        store.set(_key(work, mine), _place_of_main_thread())
        return [f"rank {rank} {_sign(store, _key(work, rank))}" for rank in range(ranks)]
    except DistError as error:
        return [f"the store of the first rank gives no answer ({error}): is that rank the one?"]


def _sign(store: Store, key: str) -> str:
    try:
        store.wait([key], timedelta(seconds=SIGN_S))
    except DistError:
        return "gives no sign of life"
    return f"is at {store.get(key).decode()}"


def _key(work: str, rank: int) -> str:
    return f"watchdog/{work}/{rank}"


def _place_of_main_thread() -> str:
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
