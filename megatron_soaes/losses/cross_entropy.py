"""Next-token cross entropy over vocab-parallel logits, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""fp32 logits worked on at once: what fits a core's cache; on a GPU, enough to keep it busy."""


def token_losses(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """Cross entropy of each position in nats, fp32, shape of `labels`.

    logits: [batch, sequence, padded vocabulary / tensor_parallel], any float dtype, this rank's
    columns; labels: [batch, sequence] token ids below `vocab_size`. Rows of the vocabulary that
    stand for no token (from `vocab_size` on) take no part. The arithmetic is fp32; only the logits
    as they came are kept for the backward pass.
    """
    columns = logits.shape[-1]
    first = parallel_state.get_tensor_model_parallel_rank() * columns
    real = min(max(vocab_size - first, 0), columns)
    rows = logits.reshape(-1, columns)
    losses: Tensor = _CrossEntropy.apply(rows, labels.reshape(-1) - first, real)  # type: ignore[no-untyped-call]
    return losses.view(labels.shape)


class _CrossEntropy(torch.autograd.Function):
    """log(sum(exp(logits))) - logits[label] over the columns of all tensor-parallel ranks."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, real: int) -> Tensor:
        """logits [t, columns]; labels [t], counted from this rank's first column; -> [t] fp32."""
        here = (labels >= 0) & (labels < real)
        columns = torch.where(here, labels, 0)[:, None]
        local = torch.full(labels.shape, -torch.inf, device=logits.device)
        predicted = torch.zeros(labels.shape, device=logits.device)
        for rows in _chunks(logits) if real else ():
            values = logits[rows, :real].float()
            value = values.gather(1, columns[rows]).squeeze(1)
            # The fused log-softmax is three times faster than logsumexp on a CPU.
            logarithms = values.log_softmax(1).gather(1, columns[rows]).squeeze(1)
            predicted[rows], local[rows] = value, value - logarithms
        normalizer, predicted = _over_ranks(local, predicted.masked_fill_(~here, 0.0))
        ctx.save_for_backward(logits, columns, here, (local - normalizer).exp())
        ctx.real = real
        return normalizer - predicted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """(softmax(logits) - one-hot(label)) * gradient, in the dtype of the logits."""
        logits, columns, here, part = ctx.saved_tensors
        gradient = gradients[0][:, None]
        result = torch.empty_like(logits)
        result[:, ctx.real :] = 0.0
        label = torch.where(here[:, None], -gradient, 0.0)
        scale = part[:, None] * gradient
        for rows in _chunks(logits) if ctx.real else ():
            values = logits[rows, : ctx.real].softmax(1, dtype=torch.float32)
            values.mul_(scale[rows]).scatter_add_(1, columns[rows], label[rows])
            result[rows, : ctx.real] = values
        return result, None, None


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Runs of rows whose fp32 logits fill a chunk."""
    size = max(1, CHUNK_BYTES[logits.device.type] // (4 * logits.shape[1]))
    for start in range(0, logits.shape[0], size):
        yield slice(start, start + size)


def _over_ranks(normalizer: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """Both for the whole vocabulary, from those of each tensor-parallel rank's columns."""
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size() == 1:
        return normalizer, predicted
    mine = torch.cat((normalizer, predicted))
    parts = mine.new_empty(group.size() * len(mine))
    torch.distributed.all_gather_into_tensor(parts, mine, group=group)
    normalizers, predictions = parts.view(group.size(), 2, -1).unbind(1)
    return normalizers.logsumexp(0), predictions.sum(0)
