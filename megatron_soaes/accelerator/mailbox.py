"""Tensors handed from rank to rank through memory that the ranks of one machine share.

Sockets are what gloo has. Two ranks that exchange 400 kB wait 2 to 3 ms there and a tenth of that
here; under sequence parallelism each layer makes ten such exchanges.
"""

from __future__ import annotations

import os
import platform
import secrets
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup, Work

CAPACITY = 4 << 20
"""Bytes that one rank can hand to one other at a time."""
LINE = 64
"""Bytes from mark to mark, so that no two ranks write to one line of a processor's cache."""
SPIN_S = 2e-3
"""How long a rank looks without pause for one that is on its way."""
NAP_S = 5e-5
TOKEN = 16
"""Bytes at the start by which a rank knows that it has opened the right memory."""


class Mailbox:
    """Slots in shared memory: one for each sender and receiver, in two sets that take turns.

    Each rank counts its exchanges in `posted` and `taken`. It reads a slot once the sender has
    posted that turn, and writes to a set once everyone has taken what lay there two turns before.
    """

    def __init__(self, memory: np.ndarray, rank: int, ranks: int, timeout_s: float) -> None:
        marks = 2 * ranks * LINE
        lines = memory[LINE : LINE + marks].view(np.int64).reshape(2, ranks, -1)
        self._posted, self._taken = lines[0, :, 0], lines[1, :, 0]
        slots = torch.from_numpy(memory[_slots_at(ranks) :])
        self._slots = slots.view(2, ranks, ranks, CAPACITY)
        self._rank, self._timeout_s, self._turn = rank, timeout_s, 0
        # A rank that spins must not keep the one it waits for from its processor.
        crowded = torch.distributed.get_world_size() > len(os.sched_getaffinity(0))
        self._spin_s = 0.0 if crowded else SPIN_S
        self._others = [other for other in range(ranks) if other != rank]
        self._under_way: _Exchange | None = None

    def exchange(self, sent: Sequence[Tensor], received: Sequence[Tensor]) -> Work:
        """Post part i for rank i; who waits for the result takes part i of rank i into received[i].

        One's own part is not touched. Parts are contiguous and at most `CAPACITY` bytes.
        """
        if self._under_way is not None:
            self._under_way.wait()
        self._turn += 1
        self._await(self._taken, self._turn - 2)
        for other in self._others:
            self._slot(self._rank, other, sent[other]).copy_(sent[other])
        self._posted[self._rank] = self._turn
        self._under_way = _Exchange(self, received)
        return self._under_way

    def take(self, received: Sequence[Tensor]) -> None:
        """Read what the others posted in this turn."""
        self._await(self._posted, self._turn)
        for other in self._others:
            received[other].copy_(self._slot(other, self._rank, received[other]))
        self._taken[self._rank] = self._turn
        self._under_way = None

    def _slot(self, sender: int, receiver: int, like: Tensor) -> Tensor:
        place = self._slots[self._turn % 2, sender, receiver, : like.nbytes]
        return place.view(like.dtype).view(like.shape)

    def _await(self, marks: np.ndarray, turn: int) -> None:
        """Return once every mark has reached `turn`; the other ranks are a moment behind."""
        start = time.monotonic()
        while marks.min() < turn:
            waited = time.monotonic() - start
            if waited > self._spin_s:
                time.sleep(NAP_S)
            if waited > self._timeout_s:
                late = [int(rank) for rank in np.flatnonzero(marks < turn)]
                raise TimeoutError(
                    f"ranks {late} of the group did not come to an exchange in {self._timeout_s} s"
                )


class _Exchange(Work):
    """The handle of one exchange."""

    def __init__(self, mailbox: Mailbox, received: Sequence[Tensor]) -> None:
        super().__init__()
        self._mailbox: Mailbox | None = mailbox
        self._received = received

    def wait(self, timeout: object = None) -> bool:
        if self._mailbox is not None:
            self._mailbox.take(self._received)
            self._mailbox = None
        return True


_MAILBOXES: weakref.WeakKeyDictionary[ProcessGroup, Mailbox | None] = weakref.WeakKeyDictionary()


def mailbox_of(group: ProcessGroup | None) -> Mailbox | None:
    """The mailbox of the group, made at the first call (collective); None where it cannot have one.

    That is where its ranks are on several machines, or the processor may show another rank two
    writes in another order than they were made.
    """
    group = group or torch.distributed.group.WORLD
    assert group is not None
    if group not in _MAILBOXES:
        _MAILBOXES[group] = _open(group) if platform.machine() == "x86_64" else None
    return _MAILBOXES[group]


def _open(group: ProcessGroup) -> Mailbox | None:
    """Map one piece of memory in all ranks: the first makes it, the others find it in /proc."""
    rank, ranks = group.rank(), group.size()
    size = _slots_at(ranks) + 2 * ranks * ranks * CAPACITY
    token = secrets.token_bytes(TOKEN)
    told: list[tuple[str, bytes]] = [("", token)]
    if rank == 0:
        memory = os.memfd_create("soaes-mailbox")
        os.truncate(memory, size)
        os.pwrite(memory, token, 0)
        told = [(f"/proc/{os.getpid()}/fd/{memory}", token)]
    torch.distributed.broadcast_object_list(told, group=group, group_src=0)
    path, token = told[0]
    try:
        mapped = np.memmap(Path(path), dtype=np.uint8, mode="r+")
        here = mapped.size == size and mapped[:TOKEN].tobytes() == token
    except OSError:
        here = False
    # Objects are gathered at once; a tensor's all_reduce inside a coalescing manager is put off.
    everywhere = [False] * ranks
    torch.distributed.all_gather_object(everywhere, here, group)
    if rank == 0:
        os.close(memory)
    timeout = group._get_backend(torch.device("cpu")).options._timeout
    return Mailbox(mapped, rank, ranks, timeout.total_seconds()) if all(everywhere) else None


def _slots_at(ranks: int) -> int:
    """Where the slots begin: after the token and the marks, on a page of their own."""
    return -(-(LINE + 2 * ranks * LINE) // 4096) * 4096
