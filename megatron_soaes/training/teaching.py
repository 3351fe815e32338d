"""The teacher of a distillation stage: stored answers, or a model that runs beside the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron.core.models.gpt import GPTModel
from numpy.typing import NDArray

from megatron_soaes.checkpoint import directory
from megatron_soaes.data.teacher_store import Answers, TeacherStore
from megatron_soaes.models.build import BuildOptions
from megatron_soaes.recipe.distillation_settings import DistillationObjective
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Recompute
from megatron_soaes.training.drafting import AcceptanceMeter, Window
from megatron_soaes.training.engine import load_model
from megatron_soaes.training.objective import (
    Distillation,
    Objective,
    TeacherOf,
    running_teacher,
    stored_teacher,
)


@dataclass(frozen=True)
class FrozenModel:
    """A checkpoint that is read but not trained."""

    shape: ModelShape
    checkpoint: Path
    """Checkpoint root."""
    at_best: bool
    """Whether its best iteration is meant, not its newest."""

    def load(self, options: BuildOptions) -> GPTModel:
        """The whole model in the layout of `options`, without pipeline stages (collective).

        Vocabularies of one tokenizer are padded differently; here it is padded as the student's, so
        that both give logits of the same columns.
        """
        iteration = directory.best_iteration(self.checkpoint) if self.at_best else None
        options = replace(options, recompute=Recompute())
        (model,) = load_model(self.shape, options, self.checkpoint, iteration)
        for weight in model.parameters():
            weight.requires_grad_(False)
        model.eval()
        return model


@dataclass(frozen=True)
class StoredAnswers:
    """What a capture stored, and which of its samples each position of the training reads."""

    training: TeacherStore
    order: NDArray[Any]
    """[samples] int64; the store's sample at each position."""
    validation: Mapping[str, TeacherStore]
    """By validation set."""


@dataclass(frozen=True)
class Teaching:
    """What makes a training job a distillation."""

    settings: DistillationObjective
    vocab_size: int
    """Ids of the tokenizer; both models may have rows for more, which take no part."""
    window: Window
    teacher: StoredAnswers | FrozenModel
    reference: FrozenModel | None
    """The draft that the selection of positions needs."""

    def identity(self) -> dict[str, Any]:
        """What decides the course of the training, as JSON."""
        if isinstance(self.teacher, StoredAnswers):
            teacher: dict[str, Any] = self.teacher.training.description()
        else:
            teacher = {"checkpoint": self.teacher.checkpoint.name, "best": self.teacher.at_best}
        return {**self.settings.model_dump(mode="json"), "teacher": teacher}


class Lessons:
    """A teaching at work: the objective, the meter and the stored answers of a position."""

    def __init__(self, teaching: Teaching, options: BuildOptions, loss: Objective) -> None:
        """Load the models that run beside the student (collective).

        `options` are the student's; `loss` is what its validation tells in every stage.
        """
        self._teaching = teaching
        teacher = teaching.teacher
        asked: TeacherOf
        if isinstance(teacher, StoredAnswers):
            asked = stored_teacher(teacher.training.layout)
        else:
            asked = running_teacher(teacher.load(options))
        reference = teaching.reference.load(options) if teaching.reference else None
        settings, vocab_size = teaching.settings, teaching.vocab_size
        self.objective = Distillation(asked, settings, vocab_size, reference)
        self.meter = AcceptanceMeter(
            loss,
            asked,
            teaching.window,
            vocab_size=vocab_size,
            temperature=settings.temperature,
        )

    def answers(self, positions: Sequence[int]) -> list[Answers]:
        """What the store says at each training position; nothing where the teacher runs along."""
        teacher = self._teaching.teacher
        if isinstance(teacher, FrozenModel):
            return []
        return [teacher.training[int(teacher.order[position])] for position in positions]

    def validation_answers(self, name: str) -> TeacherStore | None:
        """The store of a validation set; None where the teacher runs along."""
        teacher = self._teaching.teacher
        return None if isinstance(teacher, FrozenModel) else teacher.validation[name]
