"""Ranks of small jobs, forked from one process that has imported everything."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from megatron_soaes.accelerator.groups import Rendezvous, process_group
from megatron_soaes.accelerator.launch import free_port


def run_ranks(
    processes: int, work: Callable[[], object], log: Path, kill: Callable[[], bool] | None = None
) -> list[int]:
    """Fork `processes` ranks that do `work` in one process group; returns their exit codes.

    A death by signal N counts as -N. When a rank dies so, or when `kill` says so, the others are
    killed; processes that ranks have forked (writers of checkpoints) are left alone.
    """
    port = free_port()
    running = {_fork(rank, processes, port, work, log): rank for rank in range(processes)}
    codes = [0] * processes
    while running:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended in running:
            rank = running.pop(ended)
            codes[rank] = os.waitstatus_to_exitcode(status)
        if any(code < 0 for code in codes) or (kill is not None and kill()):
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            kill = None
        time.sleep(0.01)
    return codes


def _fork(rank: int, processes: int, port: int, work: Callable[[], object], log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        stream = os.open(log.with_suffix(f".rank{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        with process_group(Rendezvous(rank, processes, "127.0.0.1", port), timeout_s=120):
            work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(ValueError):
            sys.stdout.flush()
        os._exit(code)
