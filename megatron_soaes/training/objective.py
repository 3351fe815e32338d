"""What is minimised at each position: the text's own next token, or a teacher's probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_soaes.data.sample import MicroBatch
from megatron_soaes.data.teacher_store import Layout
from megatron_soaes.losses.cross_entropy import token_losses
from megatron_soaes.losses.distillation import distillation_losses, token_divergences
from megatron_soaes.losses.divergences import (
    AcceptanceHybrid,
    Divergence,
    ForwardKL,
    JensenShannon,
    NegativeLogAcceptance,
    ReverseKL,
    TotalVariation,
)
from megatron_soaes.losses.selection import most_learnable
from megatron_soaes.losses.teachers import (
    DenseTeacher,
    SampledTeacher,
    Teacher,
    TopKTeacher,
    log_weights,
)
from megatron_soaes.recipe.distillation_settings import DistillationObjective

TeacherOf = Callable[[MicroBatch], Teacher]
"""What the teacher holds likely at the positions of a micro-batch, those of this rank."""


class Objective(Protocol):
    """A loss at each position of a micro-batch."""

    def losses(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """[1, t] fp32 in nats, the same on all tensor-parallel ranks, not yet weighted.

        logits: [1, t, padded vocabulary / tensor_parallel] of the positions of `batch`, which are
        this context-parallel rank's. Collective over tensor parallel.
        """
        ...


class CrossEntropy:
    """With the text's own next token."""

    def __init__(self, vocab_size: int, *, fused: bool = False) -> None:
        self._vocab_size = vocab_size
        self._fused = fused

    def losses(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        return token_losses(logits, batch.labels, self._vocab_size, fused=self._fused)


class Distillation:
    """With a teacher's probabilities, over the tokenizer's ids alone, as the recipe says."""

    def __init__(
        self,
        teacher: TeacherOf,
        settings: DistillationObjective,
        vocab_size: int,
        reference: GPTModel | None = None,
    ) -> None:
        """`vocab_size` ids, from 0, take part; `reference` is the draft that selection needs."""
        self._teacher = teacher
        self._settings = settings
        self._divergence = divergence_of(settings)
        self._vocab_size = vocab_size
        self._reference = reference

    def losses(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        settings, teacher = self._settings, self._teacher(batch)
        losses = distillation_losses(
            logits,
            batch.labels,
            batch.loss_weights,
            teacher,
            divergence=self._divergence,
            vocab_size=self._vocab_size,
            temperature=settings.temperature,
            cross_entropy_weight=settings.cross_entropy,
        )
        if self._reference is None or settings.selection is None:
            return losses
        share = settings.selection.share
        with torch.no_grad():
            gaps = [
                token_divergences(
                    one,
                    batch.loss_weights,
                    teacher,
                    divergence=ForwardKL(),
                    vocab_size=self._vocab_size,
                    temperature=settings.temperature,
                )
                for one in (logits, frozen_logits(self._reference, batch))
            ]
            kept = most_learnable(gaps[0], gaps[1], batch.loss_weights, share)
        # The sum is divided by the weight of all positions: so it is the mean over those kept.
        return torch.where(kept > 0, losses / share, 0.0)


def divergence_of(settings: DistillationObjective) -> Divergence:
    """The divergence that a recipe names, with its parameter."""
    match settings.divergence:
        case "forward_kl":
            return ForwardKL()
        case "reverse_kl":
            return ReverseKL()
        case "jensen_shannon":
            return JensenShannon(settings.beta)
        case "total_variation":
            return TotalVariation()
        case "negative_log_acceptance":
            return NegativeLogAcceptance()
        case "acceptance_hybrid":
            return AcceptanceHybrid(settings.decay)


def running_teacher(model: GPTModel) -> TeacherOf:
    """A teacher that computes its logits beside the student, in the same layout."""
    return lambda batch: DenseTeacher(frozen_logits(model, batch))


def stored_teacher(layout: Layout) -> TeacherOf:
    """A teacher that said everything before: the micro-batch brings its answers."""

    def teacher(batch: MicroBatch) -> Teacher:
        answers = batch.answers
        assert answers is not None, "the micro-batch was laid out without the store"
        if layout.kind == "top_k":
            return TopKTeacher(answers.ids, answers.log_probs, answers.rest)
        weights = log_weights(answers.log_probs, answers.rest[..., None], layout.exponent)
        return SampledTeacher(answers.ids, answers.log_probs, weights)

    return teacher


@torch.no_grad()
def frozen_logits(model: GPTModel, batch: MicroBatch) -> Tensor:
    """[1, t, padded vocabulary / tensor_parallel] of a whole model that is not trained."""
    logits: Tensor = model(
        input_ids=batch.inputs,
        position_ids=None,
        attention_mask=None,
        packed_seq_params=batch.packed_seq_params(),
    )
    return logits
