"""What a stage on this machine prints: one line as tasks finish, not datatrove's logs of each."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import IO

from loguru import logger

from data_prep.curation.pipeline.stages import Stage

SECONDS_BETWEEN_LOOKS = 0.5
CONSOLE_LOG = "console.log"


@contextmanager
def telling_progress(stage: Stage, logs: Path) -> Iterator[None]:
    """Print how many tasks of a stage are done; what is printed inside goes to its `console.log`.

    Processes started inside inherit file descriptor 2, so it is that one that is turned aside.
    datatrove's logger is left without a handler: it keeps the stream that it last wrote to.
    """
    logs.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w", encoding="utf-8")
    ended = threading.Event()
    with (
        terminal,
        (logs / CONSOLE_LOG).open("a", encoding="utf-8") as console,
        redirect_stderr(console),
    ):
        os.dup2(console.fileno(), 2)
        teller = threading.Thread(target=_tell, args=(stage, logs, terminal, ended), daemon=True)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()
            logger.remove()
            console.flush()
            os.dup2(terminal.fileno(), 2)


def _tell(stage: Stage, logs: Path, terminal: IO[str], ended: threading.Event) -> None:
    told = -1
    over = False
    while not over:
        over = ended.wait(SECONDS_BETWEEN_LOOKS)
        done = sum(1 for _ in (logs / "completions").glob("*"))
        if done != told:
            print(f"{stage.name}: {done} of {stage.tasks} tasks done", file=terminal, flush=True)
            told = done
