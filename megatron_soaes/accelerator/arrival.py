"""Meeting points of all ranks that have a deadline and know who is missing.

A collective says only that it waits. These use the key-value store of the process group instead:
each rank leaves a note when it comes, and who has waited too long reads which notes are not there.
They work for every backend and touch no device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import DistStoreError, get_rank, get_world_size
from torch.distributed.distributed_c10d import _get_default_store

ARRIVED = "here"
DEADLINE_S = 1800.0
"""Long enough for the largest save to a slow file system."""


class MissingRanksError(TimeoutError):
    """Some ranks did not come to a meeting point before its deadline."""


class RankFailedError(RuntimeError):
    """Another rank came to a meeting point with an error; its own log holds the traceback."""


class Arrivals:
    """The meeting points of one group of processes, in the order in which all ranks reach them.

    Made, like a collective, by all ranks of the world together and in the same order.
    """

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._store = _get_default_store()
        self._number = self._store.add(f"arrivals/{get_rank()}", 1)
        self._met = 0

    def meet(self, what: str) -> None:
        """Wait until all ranks are here.

        Raises MissingRanksError naming the ranks that did not come within the deadline, and
        RankFailedError when one came with an error or has given up waiting.
        """
        self._post(ARRIVED)
        keys = [self._key(rank) for rank in range(get_world_size())]
        try:
            self._store.wait(keys, timedelta(seconds=self._deadline_s))
        except DistStoreError:
            missing = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
            message = (
                f"{what}: {_ranks(missing)} did not arrive within {self._deadline_s:g} s "
                f"({len(keys) - len(missing)} of {len(keys)} did)"
            )
            # Who comes later must not believe that the others are still with it.
            self._post(f"gave up: {message}")
            raise MissingRanksError(message) from None
        notes = [self._store.get(key).decode() for key in keys]
        failed = {rank: note for rank, note in enumerate(notes) if note != ARRIVED}
        if failed:
            rank, note = next(iter(failed.items()))
            raise RankFailedError(f"{what}: rank {rank} {note}")
        if self._met:
            # Everybody has left the meeting before this one.
            self._store.delete_key(self._key(get_rank(), self._met - 1))
        self._met += 1

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Do the block's own work (no collectives) on each rank, then meet.

        An error in it reaches the other ranks at once, as a RankFailedError.
        """
        try:
            yield
        except BaseException as error:
            self._post(f"failed: {type(error).__name__}: {error}")
            raise
        self.meet(what)

    def _post(self, note: str) -> None:
        self._store.set(self._key(get_rank()), note)

    def _key(self, rank: int, meeting: int | None = None) -> str:
        return f"arrivals/{self._number}/{self._met if meeting is None else meeting}/{rank}"


def _ranks(missing: list[int]) -> str:
    return ("rank " if len(missing) == 1 else "ranks ") + ", ".join(map(str, missing))
