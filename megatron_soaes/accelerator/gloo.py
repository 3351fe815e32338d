"""Collectives that do not move more data over gloo than they need to."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, Work

from megatron_soaes.accelerator.mailbox import CAPACITY, mailbox_of


class _All(Work):
    """The handle of several pieces of work, or of none: then it was done when the call returned."""

    def __init__(self, pieces: Sequence[Work] = ()) -> None:
        super().__init__()
        self._pieces = pieces

    def wait(self, timeout: object = None) -> bool:
        # A send or receive of gloo that was waited for once is waited for in vain.
        pieces, self._pieces = self._pieces, ()
        for piece in pieces:
            piece.wait()
        return True


class _Sum(Work):
    """The handle of parts under way; who waits for it adds them up, in the order of the ranks."""

    def __init__(self, output: Tensor, parts: Sequence[Tensor], pieces: Sequence[Work]) -> None:
        super().__init__()
        self._output, self._parts, self._pieces = output, parts, pieces

    def wait(self, timeout: object = None) -> bool:
        if self._parts:
            for piece in self._pieces:
                piece.wait()
            first, second, *rest = self._parts
            torch.add(first, second, out=self._output)
            for part in rest:
                self._output.add_(part)
            self._parts = ()
        return True


def reduce_scatter(
    output: Tensor,
    input: Tensor,
    op: ReduceOp.RedOpType = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """`torch.distributed.reduce_scatter_tensor`, sums added in the order of the ranks.

    torch's gloo backend reduces everything everywhere and keeps a part; sending each rank the part
    it is to add takes half the time on two ranks. Other operations go to torch.
    """
    if op != ReduceOp.SUM:
        return torch.distributed.reduce_scatter_tensor(output, input, op, group, async_op)
    ranks = torch.distributed.get_world_size(group)
    if ranks == 1:
        return _copy(output, input, async_op)
    sent = list(input.view(ranks, *output.shape))
    parts = [torch.empty_like(part) for part in sent]
    me = torch.distributed.get_rank(group)
    parts[me] = sent[me]
    work = _Sum(output, parts, _exchange(sent, parts, group))
    if async_op:
        return work
    work.wait()
    return None


def all_gather(
    output: Tensor,
    input: Tensor,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """`torch.distributed.all_gather_into_tensor`, in half of gloo's time on two ranks."""
    ranks = torch.distributed.get_world_size(group)
    if ranks == 1:
        return _copy(output, input, async_op)
    work = _All(_exchange([input] * ranks, list(output.view(ranks, *input.shape)), group))
    if async_op:
        return work
    work.wait()
    return None


def scatter_gradients(
    output: Tensor,
    input: Tensor,
    op: ReduceOp.RedOpType = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """`reduce_scatter`, done when it returns: the coalescing manager drops its handle."""
    reduce_scatter(output, input, op, group)
    return _All() if async_op else None


def gather_weights(
    output: Tensor,
    input: Tensor,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """`torch.distributed.all_gather_into_tensor`; over one rank it moves nothing.

    Megatron-Core gathers weights inside torch's coalescing manager, which waits for torch's own
    collectives and for nothing else.
    """
    if torch.distributed.get_world_size(group) == 1:
        return _copy(output, input, async_op)
    return torch.distributed.all_gather_into_tensor(output, input, group, async_op)


def _exchange(
    sent: Sequence[Tensor], received: Sequence[Tensor], group: ProcessGroup | None
) -> list[Work]:
    """Send part i to rank i and receive part i from it, for all ranks at once; one's own is copied.

    Returns what is under way; the parts sent must stay as they are until it is done.
    """
    me = torch.distributed.get_rank(group)
    if received[me].data_ptr() != sent[me].data_ptr():
        received[me].copy_(sent[me])
    mailbox = mailbox_of(group)
    if mailbox is not None and sent[me].nbytes <= CAPACITY:
        return [mailbox.exchange(sent, received)]
    others = [rank for rank in range(len(sent)) if rank != me]
    # A sender that finds its receiver waiting writes at once: a fifth of the time.
    works = [
        *(torch.distributed.irecv(received[rank], group=group, group_src=rank) for rank in others),
        *(torch.distributed.isend(sent[rank], group=group, group_dst=rank) for rank in others),
    ]
    return [work for work in works if work is not None]


def _copy(output: Tensor, source: Tensor, async_op: bool) -> Work | None:
    """What a collective over one rank amounts to; nothing where output is its own input."""
    if output.data_ptr() != source.data_ptr():
        output.copy_(source)
    return _All() if async_op else None


@functools.cache
def install() -> None:
    """Use them for sequences, gradients and weights (Megatron-Core 0.16.1 holds them by name)."""
    from megatron.core.distributed import param_and_grad_buffer
    from megatron.core.tensor_parallel import layers, mappings

    for module in (layers, mappings):
        module.dist_reduce_scatter_func = reduce_scatter
        module.dist_all_gather_func = all_gather
    param_and_grad_buffer.dist_reduce_scatter_func = scatter_gradients
    param_and_grad_buffer.dist_all_gather_func = gather_weights
