"""What a process writes, in a log and on this terminal at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

CHUNK = 2**16
LAST_WORDS_S = 5.0
"""How long, after the block, is waited for processes that nobody knows of and that still write."""


@contextmanager
def copied_to(log: Path, *streams: int) -> Iterator[list[int]]:
    """File descriptors, one for each of `streams`: what is written there goes to it and to the log.

    They are for processes that are started, and end, within the block; they are closed behind it.
    A terminal that goes away takes nothing from the log.
    """
    pipes = [os.pipe() for _ in streams]
    threads = [
        Thread(target=_copy, args=(source, stream, log), daemon=True)
        for (source, _), stream in zip(pipes, streams, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield [sink for _, sink in pipes]
    finally:
        for _, sink in pipes:
            os.close(sink)
        for thread in threads:
            thread.join(LAST_WORDS_S)


def _copy(source: int, stream: int, log: Path) -> None:
    with os.fdopen(source, "rb", buffering=0) as reader, log.open("ab", buffering=0) as file:
        sinks = [stream, file.fileno()]
        while chunk := reader.read(CHUNK):
            for sink in tuple(sinks):
                try:
                    _write_all(sink, chunk)
                except OSError:
                    sinks.remove(sink)


def _write_all(sink: int, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[os.write(sink, left) :]
