"""Rows of logits whose columns lie on several tensor-parallel ranks: chunks and reductions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import Tensor

CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""fp32 logits worked on at once: what fits a core's cache; on a GPU, enough to keep it busy."""

FLOOR = -1e4
"""Stands in for the logarithm of 0, so that 0 * log(0) is 0: exp(FLOOR) is 0 in fp32 and fp64."""


@dataclass(frozen=True)
class Columns:
    """This rank's part of the vocabulary."""

    first: int
    """Token id of its first column."""
    real: int
    """Columns that stand for a token; those behind them are padding."""


def columns_of_rank(logits: Tensor, vocab_size: int) -> Columns:
    """The part that `logits` [..., padded vocabulary / tensor_parallel] holds on this rank."""
    columns = logits.shape[-1]
    first = parallel_state.get_tensor_model_parallel_rank() * columns
    return Columns(first, min(max(vocab_size - first, 0), columns))


def chunks(logits: Tensor, real: int) -> Iterator[slice]:
    """Runs of rows of `logits` [t, columns] that fill a chunk in fp32; none without a token."""
    size = max(1, CHUNK_BYTES[logits.device.type] // (4 * logits.shape[1]))
    for start in range(0, logits.shape[0] if real else 0, size):
        yield slice(start, start + size)


def log_normalizers(logits: Tensor, real: int, temperature: float) -> Tensor:
    """log(sum(exp(logits / temperature))) of each row over this rank's tokens, [t] fp32."""
    result = torch.full(logits.shape[:1], -torch.inf, device=logits.device)
    for rows in chunks(logits, real):
        result[rows] = (logits[rows, :real].float() / temperature).logsumexp(1)
    return result


def look_up(
    logits: Tensor, ids: Tensor, part: Columns, temperature: float, others_only: bool
) -> tuple[Tensor, Tensor]:
    """logits / temperature at some tokens of each row, and of the rest; over all ranks, fp32.

    logits [t, columns], this rank's; ids [t, k] token ids below the vocabulary's size -> [t, k] and
    log(sum(exp(.))) over all tokens of the row, or over those not among `ids`, [t].
    """
    values = torch.zeros(ids.shape, device=logits.device)
    rest = torch.full(ids.shape[:1], -torch.inf, device=logits.device)
    columns, here = locate(ids, part)
    for rows in chunks(logits, part.real):
        scaled = logits[rows, : part.real].float() / temperature
        values[rows] = scaled.gather(1, columns[rows])
        if others_only:
            remove(scaled, columns[rows], here[rows])
        rest[rows] = scaled.logsumexp(1)
    return sum_over_ranks(values.masked_fill_(~here, 0.0)), logsumexp_over_ranks(rest)


def locate(ids: Tensor, part: Columns) -> tuple[Tensor, Tensor]:
    """This rank's columns of token ids, and which of them it has; 0 stands for the others'."""
    columns = ids - part.first
    here = (columns >= 0) & (columns < part.real)
    return columns.masked_fill_(~here, 0), here


def remove(values: Tensor, columns: Tensor, here: Tensor) -> None:
    """Set the columns that are `here` to -inf, in place."""
    # amin, because column 0 also stands for tokens of other ranks and must then stay.
    limits = torch.where(here, -torch.inf, torch.inf)
    values.scatter_reduce_(1, columns, limits, "amin")


def sum_over_ranks(values: Tensor) -> Tensor:
    """Element-wise sum over the tensor-parallel ranks, in place."""
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size() > 1:
        torch.distributed.all_reduce(values, group=group)
    return values


def gather_from_ranks(values: Tensor) -> Tensor:
    """The tensors of all tensor-parallel ranks, [tensor_parallel, *shape]."""
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size() == 1:
        return values[None]
    parts = values.new_empty(group.size() * values.numel())
    torch.distributed.all_gather_into_tensor(parts, values.reshape(-1), group=group)
    return parts.view(group.size(), *values.shape)


def logsumexp_over_ranks(values: Tensor) -> Tensor:
    """Element-wise log(sum(exp(values))) over the tensor-parallel ranks."""
    return gather_from_ranks(values).logsumexp(0)
