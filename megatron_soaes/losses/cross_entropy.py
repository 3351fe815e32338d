"""Next-token cross entropy over vocab-parallel logits, a few rows at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from megatron_soaes.losses.vocab_parallel import (
    Columns,
    chunks,
    columns_of_rank,
    gather_from_ranks,
    locate,
)


def token_losses(logits: Tensor, labels: Tensor, vocab_size: int, *, fused: bool = False) -> Tensor:
    """Cross entropy of each position in nats, fp32, shape of `labels`.

    logits: [batch, sequence, padded vocabulary / tensor_parallel], any float dtype, this rank's
    columns; labels: [batch, sequence] token ids below `vocab_size`. Rows of the vocabulary that
    stand for no token (from `vocab_size` on) take no part. The arithmetic is fp32; only the logits
    as they came are kept for the backward pass. `fused` compiles the work on a chunk of logits: one
    kernel each way, equal up to the order of sums.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    part = columns_of_rank(logits, vocab_size)
    losses: Tensor = _CrossEntropy.apply(rows, labels.reshape(-1), part, fused)  # type: ignore[no-untyped-call]
    return losses.view(labels.shape)


class _CrossEntropy(torch.autograd.Function):
    """log(sum(exp(logits))) - logits[label] over the columns of all tensor-parallel ranks."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, part: Columns, fused: bool) -> Tensor:
        """logits [t, columns] of this rank; labels [t] token ids -> [t] fp32."""
        columns, here = locate(labels[:, None], part)
        local = torch.full(labels.shape, -torch.inf, device=logits.device)
        predicted = torch.zeros(labels.shape, device=logits.device)
        look = _compiled(_predictions) if fused else _predictions
        for rows in chunks(logits, part.real):
            predicted[rows], local[rows] = look(logits[rows, : part.real], columns[rows])
        predicted.masked_fill_(~here.squeeze(1), 0.0)
        # Both in one exchange.
        normalizers, predictions = gather_from_ranks(torch.stack((local, predicted))).unbind(1)
        normalizer = normalizers.logsumexp(0)
        ctx.save_for_backward(logits, columns, here, (local - normalizer).exp())
        ctx.real, ctx.fused = part.real, fused
        return normalizer - predictions.sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """(softmax(logits) - one-hot(label)) * gradient, in the dtype of the logits."""
        logits, columns, here, share = ctx.saved_tensors
        gradient = gradients[0][:, None]
        result = torch.empty_like(logits)
        result[:, ctx.real :] = 0.0
        label = torch.where(here, -gradient, 0.0)
        scale = share[:, None] * gradient
        differ = _compiled(_dense_differences) if ctx.fused else _differences
        for rows in chunks(logits, ctx.real):
            result[rows, : ctx.real] = differ(
                logits[rows, : ctx.real], columns[rows], scale[rows], label[rows]
            )
        return result, None, None, None


def _predictions(logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """logits [t, real], columns [t, 1] -> each row's logit there, and log(sum(exp)), [t] fp32."""
    values = logits.float()
    value = values.gather(1, columns).squeeze(1)
    # The fused log-softmax is three times faster than logsumexp on a CPU.
    return value, value - values.log_softmax(1).gather(1, columns).squeeze(1)


def _differences(logits: Tensor, columns: Tensor, scale: Tensor, label: Tensor) -> Tensor:
    """softmax(logits) * scale, [t, real] fp32, and `label` [t, 1] added at each row's column."""
    values = logits.softmax(1, dtype=torch.float32)
    return values.mul_(scale).scatter_add_(1, columns, label)


def _dense_differences(logits: Tensor, columns: Tensor, scale: Tensor, label: Tensor) -> Tensor:
    """The same in the dtype of the logits, without a scatter, which would end a kernel."""
    here = torch.arange(logits.shape[1], device=logits.device) == columns
    values = logits.softmax(1, dtype=torch.float32) * scale + torch.where(here, label, 0.0)
    return values.to(logits.dtype)


_compiled = cache(torch.compile)
