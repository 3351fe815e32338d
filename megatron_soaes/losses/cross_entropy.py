"""Next-token cross entropy over vocab-parallel logits, a few rows at a time."""

from __future__ import annotations

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


def token_losses(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """Cross entropy of each position in nats, fp32, shape of `labels`.

    logits: [batch, sequence, padded vocabulary / tensor_parallel], any float dtype, this rank's
    columns; labels: [batch, sequence] token ids below `vocab_size`. Rows of the vocabulary that
    stand for no token (from `vocab_size` on) take no part. The arithmetic is fp32; only the logits
    as they came are kept for the backward pass.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    part = columns_of_rank(logits, vocab_size)
    losses: Tensor = _CrossEntropy.apply(rows, labels.reshape(-1), part)  # type: ignore[no-untyped-call]
    return losses.view(labels.shape)


class _CrossEntropy(torch.autograd.Function):
    """log(sum(exp(logits))) - logits[label] over the columns of all tensor-parallel ranks."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, part: Columns) -> Tensor:
        """logits [t, columns] of this rank; labels [t] token ids -> [t] fp32."""
        columns, here = locate(labels[:, None], part)
        local = torch.full(labels.shape, -torch.inf, device=logits.device)
        predicted = torch.zeros(labels.shape, device=logits.device)
        for rows in chunks(logits, part.real):
            values = logits[rows, : part.real].float()
            value = values.gather(1, columns[rows]).squeeze(1)
            # The fused log-softmax is three times faster than logsumexp on a CPU.
            logarithms = values.log_softmax(1).gather(1, columns[rows]).squeeze(1)
            predicted[rows], local[rows] = value, value - logarithms
        predicted.masked_fill_(~here.squeeze(1), 0.0)
        # Both in one exchange.
        normalizers, predictions = gather_from_ranks(torch.stack((local, predicted))).unbind(1)
        normalizer = normalizers.logsumexp(0)
        ctx.save_for_backward(logits, columns, here, (local - normalizer).exp())
        ctx.real = part.real
        return normalizer - predictions.sum(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """(softmax(logits) - one-hot(label)) * gradient, in the dtype of the logits."""
        logits, columns, here, share = ctx.saved_tensors
        gradient = gradients[0][:, None]
        result = torch.empty_like(logits)
        result[:, ctx.real :] = 0.0
        label = torch.where(here, -gradient, 0.0)
        scale = share[:, None] * gradient
        for rows in chunks(logits, ctx.real):
            values = logits[rows, : ctx.real].softmax(1, dtype=torch.float32)
            values.mul_(scale[rows]).scatter_add_(1, columns[rows], label[rows])
            result[rows, : ctx.real] = values
        return result, None, None
