"""Start the processes of one local job and end them together. No torch in this process.

`torchrun` would do, but it turns every worker's exit code into 1, does not pass SIGUSR1 on, and
imports torch (seconds) before it starts anything.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_soaes.accelerator.copied import copied_to
from megatron_soaes.accelerator.forked import ForkedProcess, can_fork
from megatron_soaes.errors import ExitCode

Worker = subprocess.Popen[bytes] | ForkedProcess
Launcher = Callable[[str, Sequence[str], int, Path], int]
"""Runs a module with arguments as so many ranks, logs in a folder; returns one exit code."""

GRACE_S = 30.0
"""How long the other ranks may take to end after one has ended badly, before they are aborted."""
ABORT_S = 2.0
"""How long an aborted rank may take to write its stacks, before it is killed."""
QUIET_CODES = (ExitCode.OK, ExitCode.STOPPED)
"""Ends that need no explanation."""
PR_SET_PDEATHSIG = 1
"""prctl(2)"""
LOG_LINES = 20
"""Lines of a rank's log that are shown when the job failed."""


def end_at_once_on_stop_signals() -> None:
    """From here on SIGTERM and SIGUSR1 end this process with `ExitCode.STOPPED`.

    For the time in which there is nothing to save: before a stage's own handlers, and between
    stages. A job script then requeues, whenever the signal comes.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, _: os._exit(ExitCode.STOPPED))


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(module: str, arguments: Sequence[str], processes: int, logs: Path) -> int:
    """Run `python -m module arguments` as ranks 0..processes-1 and return one exit code.

    Every rank writes to `logs/rank{N}.log`, and rank 0 to this terminal too. SIGINT, SIGTERM and
    SIGUSR1 are passed on to every rank. When a rank fails the others get SIGTERM, after `GRACE_S`
    SIGABRT (a worker with `faulthandler` writes its stacks then) and SIGKILL, and the end of every
    log is shown. The result is 0 when all ranks ended with 0, otherwise the code of the first
    failure (a death by signal N counts as 128 + N).
    """
    logs.mkdir(parents=True, exist_ok=True)
    workers: list[Worker] = []
    with (
        copied_to(_log(logs, 0), 1, 2) as (out, err),
        stop_signals_go_to(lambda received: _send(workers, received)),
    ):
        try:
            for worker in _started(module, arguments, processes, logs, out=out, err=err):
                workers.append(worker)
            code = _wait(workers)
        finally:
            for worker in workers:
                _kill_group(worker)
    if code not in QUIET_CODES:
        _show_logs(logs, processes)
    return code


@contextmanager
def stop_signals_go_to(receive: Callable[[int], None]) -> Iterator[None]:
    """For the time of the block SIGINT, SIGTERM and SIGUSR1 are handed to `receive`."""
    previous = {
        number: signal.signal(number, lambda received, _: receive(received))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _log(logs: Path, rank: int) -> Path:
    return logs / f"rank{rank}.log"


def _started(
    module: str, arguments: Sequence[str], processes: int, logs: Path, *, out: int, err: int
) -> Iterator[Worker]:
    """One rank after the other, as it starts; rank 0 writes to `out` and `err`."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    shared = {
        # Megatron-Core overlaps tensor-parallel communication correctly only with one queue.
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "COLUMNS": str(shutil.get_terminal_size().columns),
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    for rank in range(processes):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        if rank == 0:
            yield _process(module, arguments, environment, out=out, err=err)
            continue
        with _log(logs, rank).open("ab") as log:
            number = log.fileno()
            yield _process(module, arguments, environment, out=number, err=number)


def _process(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], *, out: int, err: int
) -> Worker:
    if can_fork():
        return ForkedProcess(module, arguments, environment, out=out, err=err)
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=out,
        stderr=err,
        preexec_fn=end_with_starter,  # noqa: PLW1509 (this process starts no threads of torch's)
    )


def end_with_starter() -> None:
    """Ask Linux to kill this process when the one that starts it dies: a new run must be alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(workers: list[Worker]) -> int:
    deadline: float | None = None
    result = 0
    while None in (codes := [worker.poll() for worker in workers]):
        failed = [code for code in codes if code]
        if failed and deadline is None:
            result = failed[0]
            deadline = time.monotonic() + GRACE_S
            _send(workers, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _send(workers, signal.SIGABRT)
            time.sleep(ABORT_S)
            break
        time.sleep(0.05)
    if deadline is None:
        result = next((w.returncode for w in workers if w.returncode), 0)
    return 128 - result if result < 0 else result


def _show_logs(logs: Path, processes: int) -> None:
    """The end of the logs of the ranks that do not share this terminal."""
    for rank in range(1, processes):
        log = _log(logs, rank)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        print(f"--- rank {rank}, {log}", file=sys.stderr)
        print(*lines[-LOG_LINES:], sep="\n", file=sys.stderr)


def _send(workers: list[Worker], number: int) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)


def _kill_group(worker: Worker) -> None:
    """Kill a rank and whatever it forked (checkpoint writers outlive a killed trainer)."""
    # One that has only just been forked leads no group yet.
    if worker.poll() is None:
        worker.send_signal(signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
