"""One rank's shards of one checkpoint, written by a process of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

from megatron_soaes.checkpoint.checksums import FileSum, sum_files
from megatron_soaes.failpoints import failpoint


class ShardWriter:
    """Writes what Megatron-Core has planned for this rank, beginning at once.

    The process is forked: it holds what is to be written as it was at that moment. It outlives a
    killed trainer and then writes to its end, into a folder that nobody will publish.
    """

    def __init__(self, request: AsyncRequest, *, copy: bool) -> None:
        """`copy` takes a copy of every tensor first, so that training may go on meanwhile."""
        self._request = request
        self._receiver: Connection | None = None
        if request.async_fn is None:
            return
        rank, buckets, _ = request.async_fn_args
        staged = in_host_memory(buckets, copy=copy)
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(
            target=write_shards, args=(request.async_fn, rank, staged, sender)
        )
        self._process.start()
        sender.close()

    @property
    def done(self) -> bool:
        """Whether `finish` would return (or raise) at once."""
        return self._receiver is None or self._receiver.poll()

    def finish(self) -> dict[str, FileSum]:
        """Wait for the end and hand the results to Megatron-Core's save.

        Returns the sums of the files written, by name. Raises OSError when the writing failed.
        """
        if self._receiver is None:
            return {}
        failpoint("mid-checkpoint-shard")
        try:
            results, sums = self._receiver.recv()
        except EOFError:
            self._process.join()
            raise OSError(
                f"the process that wrote the shards ended with code {self._process.exitcode}"
            ) from None
        self._process.join()
        if isinstance(results, Exception):
            raise OSError(f"the shards could not be written: {results}") from results
        self._request.async_fn_args[2].put(results)
        return dict(sums)


def in_host_memory(buckets: list[Any], *, copy: bool) -> list[Any]:
    """Megatron-Core's write buckets with every tensor in host memory, a new one with `copy`.

    Its own staging (`FileSystemWriterAsync.preload_tensors`) makes no copy of a tensor that is on
    the CPU already, so the next optimizer step would change what is being saved.
    """
    return [
        (file, key, (raw, [(item, tensor.detach().to("cpu", copy=copy)) for item, tensor in kept]))
        for file, key, (raw, kept) in buckets
    ]


def write_shards(
    write: Callable[..., None], rank: int, buckets: list[Any], sender: Connection
) -> None:
    """The process: write the buckets' files, read them back for their sums, send both."""
    outcome = _Outcome()
    write(rank, buckets, outcome)
    sums = {} if isinstance(outcome.value, Exception) else sum_files(Path(b[0]) for b in buckets)
    sender.send((outcome.value, sums))
    sender.close()


class _Outcome:
    """Takes the place of the queue that Megatron-Core puts its results in."""

    value: Any = None

    def put(self, value: Any) -> None:
        self.value = value
