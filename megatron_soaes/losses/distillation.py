"""Per-position distillation losses of a vocab-parallel student, a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_soaes.errors import UserError
from megatron_soaes.losses.divergences import Divergence, ForwardKL
from megatron_soaes.losses.teachers import DenseTeacher, SampledTeacher, Teacher, TopKTeacher
from megatron_soaes.losses.vocab_parallel import (
    FLOOR,
    Columns,
    chunks,
    columns_of_rank,
    locate,
    log_normalizers,
    logsumexp_over_ranks,
    look_up,
    remove,
    sum_over_ranks,
)


def distillation_losses(
    logits: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    teacher: Teacher,
    *,
    divergence: Divergence,
    vocab_size: int,
    temperature: float = 1.0,
    cross_entropy_weight: float = 0.0,
) -> Tensor:
    """w * cross entropy + (1 - w) * temperature ** 2 * divergence at each position, fp32.

    Shapes and the treatment of positions without weight are those of `token_divergences`; labels
    [batch, sequence] are token ids below `vocab_size`. The cross entropy is at temperature 1.
    """
    losses = torch.zeros(labels.shape, device=logits.device)
    if cross_entropy_weight < 1.0:
        found = token_divergences(
            logits,
            loss_weights,
            teacher,
            divergence=divergence,
            vocab_size=vocab_size,
            temperature=temperature,
        )
        losses = losses + (1.0 - cross_entropy_weight) * found
    if cross_entropy_weight > 0.0:
        # The label is a draw that was certain.
        certain = torch.zeros(*labels.shape, 1, device=logits.device)
        label = SampledTeacher(labels[..., None], certain, certain)
        found = token_divergences(
            logits, loss_weights, label, divergence=ForwardKL(), vocab_size=vocab_size
        )
        losses = losses + cross_entropy_weight * found
    return losses


def token_divergences(
    logits: Tensor,
    loss_weights: Tensor,
    teacher: Teacher,
    *,
    divergence: Divergence,
    vocab_size: int,
    temperature: float = 1.0,
) -> Tensor:
    """temperature ** 2 * divergence of the student from the teacher at each position.

    logits: [batch, sequence, padded vocabulary / tensor_parallel], any float dtype, this rank's
    columns; loss_weights: [batch, sequence]. Result: [batch, sequence] fp32 in nats, the same on
    all tensor-parallel ranks and not multiplied by the weights. Both distributions are softmax(. /
    temperature) over the tokens below `vocab_size`; the factor is that of Hinton et al. (arXiv
    1503.02531), which keeps the size of a KL's gradient, applied to every divergence alike.
    Positions with weight 0 give 0, take no gradient and may hold anything, NaN included. Only
    logits and a few numbers a row are kept for the backward pass.

    With a `DenseTeacher` the result is exact. A `TopKTeacher` (captured at this temperature) knows
    k tokens and the mass of the rest, so both distributions are taken over k + 1 outcomes, the last
    of which is "any other token"; the gradient moves the other tokens together. By the
    data-processing inequality each KL, Jensen-Shannon and total variation is then at most the dense
    one, and the acceptance at least, with equality where student and teacher agree on how the rest
    is spread. With a `SampledTeacher` the forward KL is sum(weight * log(p / q)) over the draws,
    whose expectation, and that of its gradient, is the dense one (Anshumann et al., arXiv
    2503.16870). A function of the draws is not unbiased for any other divergence, so those are
    refused with a UserError, as is a dense teacher split otherwise than the student.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    kept = loss_weights.reshape(-1) > 0
    scaling = _Scaling(columns_of_rank(logits, vocab_size), temperature)
    if isinstance(teacher, DenseTeacher):
        _check_split(logits, teacher.logits)
        others = teacher.logits.detach().reshape(rows.shape)
        losses = _Dense.apply(rows, others, kept, scaling, divergence)  # type: ignore[no-untyped-call]
    elif isinstance(teacher, TopKTeacher):
        losses = _over_buckets(rows, kept, teacher, scaling, divergence)
    else:
        _check_forward_kl(divergence)
        losses = _over_draws(rows, kept, teacher, scaling)
    return (temperature**2 * torch.where(kept, losses, 0.0)).view(loss_weights.shape)


@dataclass(frozen=True)
class _Scaling:
    """Which of this rank's logits count, and what they are divided by."""

    part: Columns
    temperature: float

    def log_probs(self, logits: Tensor, rows: slice, normalizers: Tensor) -> Tensor:
        scaled = logits[rows, : self.part.real].float() / self.temperature
        return scaled.sub_(normalizers[rows, None]).clamp_min_(FLOOR)


def _over_buckets(
    rows: Tensor, kept: Tensor, teacher: TopKTeacher, scaling: _Scaling, divergence: Divergence
) -> Tensor:
    ids = teacher.ids.reshape(len(rows), -1)
    values, rest = _LookUp.apply(rows, ids, kept, scaling, True)  # type: ignore[no-untyped-call]
    log_q = torch.cat((values, rest[:, None]), dim=1).log_softmax(1)
    residual = teacher.log_residual.reshape(-1, 1)
    log_p = torch.cat((teacher.log_probs.reshape(ids.shape).float(), residual.float()), dim=1)
    # What was rounded when it was stored sums to 1 again.
    log_p = log_p.log_softmax(1)
    sums = divergence.sums(log_p.clamp_min(FLOOR), log_q.clamp_min(FLOOR))
    return divergence.loss(sums)


def _over_draws(rows: Tensor, kept: Tensor, teacher: SampledTeacher, scaling: _Scaling) -> Tensor:
    ids = teacher.ids.reshape(len(rows), -1)
    values, total = _LookUp.apply(rows, ids, kept, scaling, False)  # type: ignore[no-untyped-call]
    weights = teacher.log_weights.reshape(ids.shape).float().exp()
    log_p = teacher.log_probs.reshape(ids.shape).float()
    return (weights * (log_p - values + total[:, None])).sum(1)


class _Dense(torch.autograd.Function):
    """A divergence between two sets of logits over the columns of all tensor-parallel ranks."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, kept: Tensor, *settings: Any) -> Tensor:
        """student, teacher [t, columns]; kept [t]; scaling, divergence -> [t] fp32."""
        scaling, divergence = settings
        part = scaling.part
        local = [log_normalizers(x, part.real, scaling.temperature) for x in (teacher, student)]
        normalizers = logsumexp_over_ranks(torch.stack(local))
        # A rank may hold padding alone; it still takes part with as many sums.
        nothing = torch.empty(0, 1, device=student.device)
        count = len(divergence.sums(nothing, nothing))
        sums = torch.zeros(count, len(student), device=student.device)
        for rows in chunks(student, part.real):
            log_p = scaling.log_probs(teacher, rows, normalizers[0])
            log_q = scaling.log_probs(student, rows, normalizers[1])
            sums[:, rows] = divergence.sums(log_p, log_q)
        sums = sum_over_ranks(sums)
        ctx.save_for_backward(student, teacher, kept, normalizers, sums)
        ctx.settings = settings
        return divergence.loss(sums)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The divergence's gradient at each row, in the dtype of the student's logits."""
        student, teacher, kept, normalizers, sums = ctx.saved_tensors
        scaling, divergence = ctx.settings
        real = scaling.part.real
        scale = (gradients[0] / scaling.temperature)[:, None]
        result = torch.empty_like(student)
        result[:, real:] = 0.0
        for rows in chunks(student, real):
            log_p = scaling.log_probs(teacher, rows, normalizers[0])
            log_q = scaling.log_probs(student, rows, normalizers[1])
            gradient = divergence.gradient(log_p, log_q, sums[:, rows]).mul_(scale[rows])
            result[rows, :real] = gradient.masked_fill_(~kept[rows, None], 0.0)
        return result, None, None, None, None


class _LookUp(torch.autograd.Function):
    """`look_up` with a gradient; rows that are not kept give zeros and take none."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids: Tensor, kept: Tensor, *settings: Any
    ) -> tuple[Tensor, Tensor]:
        """logits [t, columns]; ids [t, k]; kept [t]; scaling, others_only -> [t, k], [t] fp32."""
        scaling, others_only = settings
        values, rest = look_up(logits, ids, scaling.part, scaling.temperature, others_only)
        ctx.save_for_backward(logits, ids, kept, rest)
        ctx.settings = settings
        return values.masked_fill(~kept[:, None], 0.0), rest.masked_fill(~kept, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """What came for the ids at their columns, what came for the rest as it is spread."""
        logits, ids, kept, rest = ctx.saved_tensors
        scaling, others_only = ctx.settings
        real = scaling.part.real
        columns, here = locate(ids, scaling.part)
        for_ids = (gradients[0] / scaling.temperature).masked_fill_(~here, 0.0)
        for_rest = (gradients[1] / scaling.temperature)[:, None]
        total = rest.clamp_min(FLOOR)[:, None]
        result = torch.empty_like(logits)
        result[:, real:] = 0.0
        for rows in chunks(logits, real):
            scaled = logits[rows, :real].float() / scaling.temperature
            if others_only:
                remove(scaled, columns[rows], here[rows])
            gradient = scaled.sub_(total[rows]).exp_().mul_(for_rest[rows])
            gradient.scatter_add_(1, columns[rows], for_ids[rows])
            result[rows, :real] = gradient.masked_fill_(~kept[rows, None], 0.0)
        return result, None, None, None, None


def _check_split(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise UserError(
            "teacher's logits", f"shape {list(teacher.shape)}",
            f"the student's, {list(student.shape)}",
            "Give both models the same padded vocabulary and tensor-parallel size.",
        )  # fmt: skip


def _check_forward_kl(divergence: Divergence) -> None:
    if not isinstance(divergence, ForwardKL):
        raise UserError(
            "divergence", f"{type(divergence).__name__} with draws from the teacher",
            "the forward KL, of which alone draws give an unbiased estimate",
            "Choose the forward KL, or capture the teacher's top k.",
        )  # fmt: skip
