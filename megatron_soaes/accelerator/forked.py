"""Processes that start at once on a CPU: forked from a server that has imported the libraries.

Importing torch and Megatron-Core takes a process seconds, on two cores most of a short stage. The
server is Python's own (`multiprocessing`, start method `forkserver`): one thread, nothing but
imports, so that a fork of it is as good as a new interpreter. Not on a GPU node, where importing
Transformer Engine may touch CUDA, which does not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import reduction
from pathlib import Path
from types import ModuleType
from typing import Any

PRELOADED = "megatron_soaes.accelerator.preloaded"


def can_fork() -> bool:
    """Whether processes may be forked here: wherever there is no NVIDIA driver."""
    return sys.platform == "linux" and not Path("/dev/nvidiactl").exists()


class ForkedProcess:
    """`python -m module arguments` in a session of its own, with the calls of `Popen` we use."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        out: int,
        err: int,
    ) -> None:
        """`out` and `err` are file descriptors; they may be closed afterwards."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([PRELOADED])
        told = module, list(arguments), dict(environment), str(Path.cwd())
        self._process = context.Process(target=_run, args=(*told, _Sent(out), _Sent(err)))
        with _no_main_module():
            self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self) -> int:
        """The exit code, once it has ended."""
        self._process.join()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to a process that runs; one that has just ended misses nothing."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class _Sent:
    """A file descriptor on its way to another process, which gets a number of its own for it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (reduction.DupFd(self._descriptor),)


def _arrived(sent: Any) -> int:
    return int(sent.detach())


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Else `multiprocessing` would import the program that runs here, a test runner say, there."""
    here = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = here


def _run(
    module: str, arguments: list[str], environment: dict[str, str], folder: str, *streams: int
) -> None:
    """Become the program; `streams` are its standard output and error."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for source, target in zip(streams, (1, 2), strict=True):
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # A new interpreter's; the server ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    # What torch would have read from the environment when it was imported.
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    """End this session with the process that asked for it: who starts the same again is alone.

    The fork server is no help: it lives until all that it has forked have ended.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
