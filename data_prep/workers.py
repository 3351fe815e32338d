"""The ranges of a run, done one after the other here or side by side in worker processes.

A worker is handed one range at a time over a pipe and answers over the same pipe, so the death of
either side is seen by the other. Tokens never cross the pipe: a worker writes its shard itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from data_prep.encoders import Backend, Encoder, load_encoder
from data_prep.ranges import InputRange
from data_prep.shards import BadLineError, CountsT, Report, ShardJob, write_shard
from megatron_soaes.errors import UserError


@dataclass(frozen=True)
class _Advanced:
    """A worker has written another batch."""

    size: int
    documents: int


@dataclass(frozen=True)
class _Ended:
    """A worker has finished its range, or could not because of the input."""

    problem: BadLineError | UserError | None = None


@dataclass(frozen=True)
class _Crashed:
    """A worker met an error that is not the input's."""

    trace: str


@dataclass
class _Worker:
    process: SpawnProcess
    source: InputRange


def run_ranges(
    job: ShardJob[CountsT],
    ranges: list[InputRange],
    encoder: Encoder,
    workers: int,
    report: Report,
) -> None:
    """Write the shards of `ranges` with `workers` processes (1: in this one).

    Raises `BadLineError` or `UserError` for the first range in corpus order that has a problem:
    every range before it is finished then, whatever the number of workers. Raises RuntimeError
    when a worker dies.
    """
    if workers == 1 or len(ranges) < 2:
        for source in ranges:
            write_shard(job, source, encoder, report)
        return
    pool: dict[Connection, _Worker] = {}
    waiting = deque(ranges)
    try:
        for number in range(min(workers, len(ranges))):
            connection, process = _start(job, encoder.name, _processors(number, workers))
            pool[connection] = _Worker(process, waiting.popleft())
            _hand_out(connection, pool[connection])
        _supervise(pool, waiting, report)
    finally:
        for worker in pool.values():
            worker.process.kill()
            worker.process.join()


def _supervise(pool: dict[Connection, _Worker], waiting: deque[InputRange], report: Report) -> None:
    """Hand out ranges in order; after a problem only wait for those that are under way."""
    busy = list(pool)
    problems: dict[int, BadLineError | UserError] = {}
    while busy:
        for connection in wait(busy):
            assert isinstance(connection, Connection)
            worker = pool[connection]
            match _receive(connection, worker):
                case _Advanced(size, documents):
                    report(size, documents)
                case _Crashed(trace):
                    place = worker.source.path
                    raise RuntimeError(
                        f"a worker failed on range {worker.source.index} of {place}:\n{trace}"
                    )
                case _Ended(problem):
                    if problem is not None:
                        problems[worker.source.index] = problem
                    if waiting and not problems:
                        worker.source = waiting.popleft()
                        _hand_out(connection, worker)
                    else:
                        busy.remove(connection)
    if problems:
        raise problems[min(problems)]


def _hand_out(connection: Connection, worker: _Worker) -> None:
    try:
        connection.send(worker.source)
    except ConnectionError:
        raise _died(worker) from None


def _receive(connection: Connection, worker: _Worker) -> object:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        raise _died(worker) from None


def _died(worker: _Worker) -> RuntimeError:
    worker.process.join()
    return RuntimeError(
        f"a worker process ended with code {worker.process.exitcode} on range "
        f"{worker.source.index} of {worker.source.path}; if it was killed for memory, use "
        "fewer --workers. The finished ranges are kept: the same command goes on."
    )


def _processors(number: int, workers: int) -> set[int]:
    """This worker's share of the processors: fastokens starts a thread for each it may use."""
    available = sorted(os.sched_getaffinity(0))
    share = available[number::workers]
    return set(share or [available[number % len(available)]])


def _start(
    job: ShardJob[CountsT], backend: Backend, processors: set[int]
) -> tuple[Connection, SpawnProcess]:
    # Spawn: a fork of a process with threads (a pipeline that has loaded torch) can deadlock.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, job, backend, processors), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _work(
    connection: Connection, job: ShardJob[CountsT], backend: Backend, processors: set[int]
) -> None:
    """The life of a worker. Signals are the parent's to handle; it ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.sched_setaffinity(0, processors)

    def report(size: int, documents: int) -> None:
        connection.send(_Advanced(size, documents))

    try:
        encoder = load_encoder(job.tokenizer, backend)
        while True:
            source: InputRange = connection.recv()
            try:
                write_shard(job, source, encoder, report)
                connection.send(_Ended())
            except (BadLineError, UserError) as problem:
                connection.send(_Ended(problem))
    except (EOFError, ConnectionError):
        return  # the parent is gone
    except BaseException:  # a Rust panic is no Exception
        connection.send(_Crashed(traceback.format_exc()))


def _exit_with_parent() -> None:
    """Leave no worker writing beside a run that is started again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
