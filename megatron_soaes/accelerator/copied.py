"""What a process writes, in a log and on this terminal at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

CHUNK = 2**16


@contextmanager
def copied_to(log: Path, *streams: int) -> Iterator[list[int]]:
    """File descriptors, one for each of `streams`: what is written there goes to it and to the log.

    Whoever starts processes with them closes them after that. Leaving the block waits until no
    process holds them any more.
    """
    pipes = [os.pipe() for _ in streams]
    with log.open("ab", buffering=0) as file:
        threads = [
            Thread(target=_copy, args=(source, stream, file.fileno()), daemon=True)
            for (source, _), stream in zip(pipes, streams, strict=True)
        ]
        for thread in threads:
            thread.start()
        yield [sink for _, sink in pipes]
        for thread in threads:
            thread.join()


def _copy(source: int, *sinks: int) -> None:
    with os.fdopen(source, "rb", buffering=0) as reader:
        while chunk := reader.read(CHUNK):
            for sink in sinks:
                _write_all(sink, chunk)


def _write_all(sink: int, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[os.write(sink, left) :]
