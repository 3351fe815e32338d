"""Next-token cross entropy over vocab-parallel logits."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

PADDING_LOGIT = -1e30
"""Finite, so that no product with it is NaN; its exponential is 0 in every dtype that has it."""


def mask_vocabulary_padding(logits: Tensor, vocab_size: int) -> Tensor:
    """Take rows that stand for no token out of the softmax.

    logits: [..., padded vocabulary / tensor_parallel], fp32. Padding rows have logit 0 (their
    weights are 0), which would otherwise stay in the denominator and train the padding.
    """
    columns = logits.shape[-1]
    first = parallel_state.get_tensor_model_parallel_rank() * columns
    real = min(max(vocab_size - first, 0), columns)
    if real == columns:
        return logits
    padding = logits.new_full((*logits.shape[:-1], columns - real), PADDING_LOGIT)
    return torch.cat((logits[..., :real], padding), dim=-1)


def token_losses(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """Cross entropy of each position in nats, fp32, shape of `labels`.

    logits: [batch, sequence, padded vocabulary / tensor_parallel], any float dtype, this rank's
    columns; labels: [batch, sequence] token ids below `vocab_size`.
    """
    # The core's function works on [sequence, batch, vocabulary] and overwrites its input.
    masked = mask_vocabulary_padding(logits.transpose(0, 1).float(), vocab_size)
    losses = vocab_parallel_cross_entropy(masked.contiguous(), labels.transpose(0, 1).contiguous())
    return losses.transpose(0, 1)
