"""Which tokens of packed documents each context-parallel rank holds.

A document of n tokens (n a multiple of 2 * ranks) is cut into 2 * ranks chunks; rank r holds chunks
r and 2 * ranks - 1 - r, so that causal attention costs every rank the same. Megatron-Core's rotary
embedding and Transformer Engine's ring attention expect this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from megatron.core import parallel_state
from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """A run of neighbouring tokens of one document that one rank holds."""

    document: int
    """Position of the document's first token in the whole packed sequence."""
    start: int
    """Position of the chunk's first token in the whole packed sequence."""
    length: int


def chunks_of_rank(cu_seqlens: Sequence[int], rank: int, ranks: int) -> list[Chunk]:
    """The chunks of one rank, in the order in which it holds them, two a document."""
    chunks = []
    for first, end in pairwise(cu_seqlens):
        length = (end - first) // (2 * ranks)
        for number in (rank, 2 * ranks - 1 - rank):
            chunks.append(Chunk(first, first + number * length, length))
    return chunks


def positions_of_rank(cu_seqlens: Sequence[int], rank: int, ranks: int) -> Tensor:
    """int64 positions of one rank's tokens in the whole packed sequence."""
    parts = [
        torch.arange(chunk.start, chunk.start + chunk.length)
        for chunk in chunks_of_rank(cu_seqlens, rank, ranks)
    ]
    return torch.cat(parts)


def whole_sequence(mine: Tensor, cu_seqlens: Sequence[int]) -> Tensor:
    """[t, ...] in the order of the sequence, from the parts [t / ranks, ...] of all ranks.

    Collective over context parallel.
    """
    group = parallel_state.get_context_parallel_group()
    if group.size() == 1:
        return mine
    order = gathered_order(cu_seqlens, group.size()).to(mine.device)
    gathered = mine.new_empty(len(order), *mine.shape[1:])
    torch.distributed.all_gather_into_tensor(gathered, mine.contiguous(), group=group)
    return gathered[order]


def gathered_order(cu_seqlens: Sequence[int], ranks: int) -> Tensor:
    """int64 index that puts tokens gathered rank by rank back into the packed sequence's order."""
    gathered = torch.cat([positions_of_rank(cu_seqlens, rank, ranks) for rank in range(ranks)])
    return torch.argsort(gathered)
