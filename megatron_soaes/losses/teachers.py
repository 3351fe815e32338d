"""What a student learns from: a teacher's logits, its most likely tokens, or draws from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_soaes.errors import UserError
from megatron_soaes.losses.vocab_parallel import (
    chunks,
    columns_of_rank,
    gather_from_ranks,
    log_normalizers,
    logsumexp_over_ranks,
    look_up,
    sum_over_ranks,
)


@dataclass(frozen=True)
class DenseTeacher:
    """All of the teacher's logits."""

    logits: Tensor
    """[batch, sequence, padded vocabulary / tensor_parallel], this rank's columns, any float
    dtype; split over the ranks as the student's."""


@dataclass(frozen=True)
class TopKTeacher:
    """The k most likely tokens of each position; whole on every tensor-parallel rank."""

    ids: Tensor
    """[batch, sequence, k] int64, distinct at each position."""
    log_probs: Tensor
    """[batch, sequence, k], nats."""
    log_residual: Tensor
    """[batch, sequence] logarithm of the probability of all other tokens together."""


@dataclass(frozen=True)
class SampledTeacher:
    """Tokens drawn from the teacher, or from a flatter or steeper version of it."""

    ids: Tensor
    """[batch, sequence, n] int64; a token may be drawn more than once."""
    log_probs: Tensor
    """[batch, sequence, n] the teacher's log-probability of each, nats."""
    log_weights: Tensor
    """[batch, sequence, n] log(p / (n * r)) for tokens drawn with probability r, so that the
    weighted sum of any function over the draws has its mean under p as expectation."""


Teacher = DenseTeacher | TopKTeacher | SampledTeacher


def top_k(logits: Tensor, k: int, vocab_size: int, temperature: float = 1.0) -> TopKTeacher:
    """The k most likely tokens of softmax(logits / temperature), the most likely first.

    logits: [batch, sequence, padded vocabulary / tensor_parallel], this rank's columns (collective
    over tensor parallel): each rank offers its own k best. Which of equally likely tokens comes
    k-th may depend on the split. The residual is summed over the other tokens, not taken as what
    is left of 1, so it is exact however small. UserError for a k below 1 or above the vocabulary.
    """
    if not 1 <= k <= vocab_size:
        raise UserError(
            "k", str(k), f"1 to {vocab_size}, the tokens of the vocabulary", "Choose another k."
        )
    rows = logits.detach().reshape(-1, logits.shape[-1])
    part = columns_of_rank(logits, vocab_size)
    values = torch.full((len(rows), k), -torch.inf, device=rows.device)
    ids = torch.zeros((len(rows), k), dtype=torch.int64, device=rows.device)
    mine = min(k, part.real)
    for chunk in chunks(rows, part.real):
        values[chunk, :mine], ids[chunk, :mine] = rows[chunk, : part.real].float().topk(mine)
    offered = gather_from_ranks(values).transpose(0, 1).flatten(1)
    offered_ids = gather_from_ranks(ids + part.first).transpose(0, 1).flatten(1)
    chosen = offered_ids.gather(1, offered.topk(k).indices)
    best, rest = look_up(rows, chosen, part, temperature, others_only=True)
    log_probs = torch.cat((best, rest[:, None]), dim=1).log_softmax(1)
    shape = (*logits.shape[:-1], k)
    return TopKTeacher(
        chosen.view(shape), log_probs[:, :k].reshape(shape), log_probs[:, k].view(shape[:-1])
    )


def draw(
    logits: Tensor,
    uniform: Tensor,
    vocab_size: int,
    *,
    exponent: float = 1.0,
    temperature: float = 1.0,
) -> tuple[SampledTeacher, Tensor]:
    """Draws at each position from r proportional to p ** exponent, with replacement.

    Random sampling knowledge distillation (Anshumann et al., arXiv 2503.16870), p = softmax(logits
    / temperature). logits: [batch, sequence, padded vocabulary / tensor_parallel], this rank's
    columns (collective over tensor parallel). uniform: [batch, sequence, draws] fp64 in [0, 1), the
    same on all these ranks; each number decides one draw by inverting the cumulative distribution
    over the token ids, so independent ones give independent draws. The second result, [batch,
    sequence] fp32, is log(sum(p ** exponent)), from which `log_weights` finds the weights again.
    """
    rows = logits.detach().reshape(-1, logits.shape[-1])
    part = columns_of_rank(logits, vocab_size)
    proposal = temperature / exponent
    local = log_normalizers(rows, part.real, proposal)
    bounds = gather_from_ranks(local).double().softmax(0).cumsum(0)
    bounds = torch.cat((torch.zeros_like(bounds[:1]), bounds))[..., None]
    rank = part.first // logits.shape[-1]
    start, end = bounds[rank], bounds[rank + 1]
    targets = uniform.to(rows.device).flatten(0, 1) * bounds[-1]
    ids = torch.zeros(targets.shape, dtype=torch.int64, device=rows.device)
    for chunk in chunks(rows, part.real):
        shares = (rows[chunk, : part.real].double() / proposal).softmax(1)
        reached = start[chunk] + shares.cumsum(1) * (end - start)[chunk]
        ids[chunk] = torch.searchsorted(reached, targets[chunk], right=True)
    here = (targets >= start) & (targets < end)
    ids = sum_over_ranks((ids.clamp_(max=max(part.real - 1, 0)) + part.first) * here)
    values, total = look_up(rows, ids, part, temperature, others_only=False)
    log_probs = values - total[:, None]
    log_normalizer = logsumexp_over_ranks(local) - exponent * total
    weights = log_weights(log_probs, log_normalizer[:, None], exponent)
    shape = uniform.shape
    teacher = SampledTeacher(ids.view(shape), log_probs.view(shape), weights.view(shape))
    return teacher, log_normalizer.view(shape[:-1])


def log_weights(log_probs: Tensor, log_normalizer: Tensor, exponent: float) -> Tensor:
    """log(p / (n * r)) of n draws [..., n] from r = p ** exponent / exp(log_normalizer)."""
    return (1.0 - exponent) * log_probs + log_normalizer - math.log(log_probs.shape[-1])
