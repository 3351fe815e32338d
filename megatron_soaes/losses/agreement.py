"""How far a draft agrees with its target at each position, and over a window of drafted tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_soaes.losses.distillation import token_divergences
from megatron_soaes.losses.divergences import TotalVariation
from megatron_soaes.losses.teachers import DenseTeacher, SampledTeacher, Teacher, TopKTeacher
from megatron_soaes.losses.vocab_parallel import (
    Columns,
    chunks,
    columns_of_rank,
    gather_from_ranks,
    look_up,
)


@torch.no_grad()
def acceptance_rates(
    logits: Tensor,
    loss_weights: Tensor,
    teacher: Teacher,
    *,
    vocab_size: int,
    temperature: float = 1.0,
) -> Tensor:
    """alpha = sum(min(p, q)): how likely the target takes a token that the draft samples.

    Leviathan et al. (arXiv 2211.17192), corollary 3.6. logits: [batch, sequence, padded vocabulary
    / tensor_parallel], this rank's columns; loss_weights: [batch, sequence] -> [batch, sequence]
    fp32, the same on all tensor-parallel ranks, 0 at positions without weight. With a `TopKTeacher`
    it is an upper bound; with a `SampledTeacher` the mean of min(1, q / p) over its weighted draws,
    whose expectation is alpha.
    """
    if isinstance(teacher, SampledTeacher):
        rates = _over_draws(logits, teacher, vocab_size, temperature)
    else:
        rejected = token_divergences(
            logits,
            loss_weights,
            teacher,
            divergence=TotalVariation(),
            vocab_size=vocab_size,
            temperature=temperature,
        )
        rates = 1.0 - rejected / temperature**2
    return torch.where(loss_weights > 0, rates, 0.0)


@torch.no_grad()
def greedy_matches(
    logits: Tensor, teacher: DenseTeacher | TopKTeacher, *, vocab_size: int
) -> Tensor:
    """Whether draft and target hold the same token most likely, [batch, sequence] bool.

    Of equally likely tokens the first counts. `logits` as in `acceptance_rates`.
    """
    mine = _most_likely(logits, vocab_size)
    if isinstance(teacher, TopKTeacher):
        return mine == teacher.ids[..., 0]
    return mine == _most_likely(teacher.logits, vocab_size)


def window_sums(rates: Tensor, runs: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """How often drafts reach each place of their window, and are accepted there; fp64 [longest].

    A draft starts at each position that counts. It reaches place j with the product of the
    rates before it, and is accepted there with that times the place's own rate, as far as its run
    goes: the sums are over all drafts whose run has a place j. rates [t]; runs [t] int64, the same
    number for positions that follow each other in one document, below 0 for those that do not
    count.
    """
    rates = rates.double()
    reached, accepted = rates.new_zeros(longest), rates.new_zeros(longest)
    product = torch.ones_like(rates)
    for place in range(min(longest, len(rates))):
        inside = runs[: len(runs) - place]
        product = product[: len(inside)]
        here = (inside == runs[place:]) & (inside >= 0)
        reached[place] = product[here].sum()
        product = product * rates[place:]
        accepted[place] = product[here].sum()
    return reached, accepted


def _over_draws(
    logits: Tensor, teacher: SampledTeacher, vocab_size: int, temperature: float
) -> Tensor:
    rows = logits.reshape(-1, logits.shape[-1])
    ids = teacher.ids.reshape(len(rows), -1)
    part = columns_of_rank(logits, vocab_size)
    values, total = look_up(rows, ids, part, temperature, others_only=False)
    log_q = (values - total[:, None]).view(teacher.ids.shape)
    ratios = (log_q - teacher.log_probs).clamp_max(0.0)
    return (teacher.log_weights + ratios).exp().sum(-1)


def _most_likely(logits: Tensor, vocab_size: int) -> Tensor:
    """Token ids [batch, sequence] of the largest logits over all tensor-parallel ranks."""
    part: Columns = columns_of_rank(logits, vocab_size)
    rows = logits.reshape(-1, logits.shape[-1])
    values = torch.full((len(rows),), -torch.inf, device=logits.device)
    ids = torch.zeros(len(rows), dtype=torch.int64, device=logits.device)
    for chunk in chunks(rows, part.real):
        best = rows[chunk, : part.real].float().max(1)
        values[chunk], ids[chunk] = best.values, best.indices + part.first
    ranks = gather_from_ranks(values).argmax(0, keepdim=True)
    return gather_from_ranks(ids).gather(0, ranks)[0].view(logits.shape[:-1])
