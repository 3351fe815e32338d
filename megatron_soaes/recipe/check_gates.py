"""Do the gates of a stage speak about something that it measures?"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.check_evaluation import evaluation_metrics
from megatron_soaes.recipe.gates import Gate
from megatron_soaes.recipe.problems import Problem, unknown
from megatron_soaes.recipe.schema import (
    DistillStage,
    EvaluateStage,
    ExportStage,
    Recipe,
    Stage,
    TrainingStage,
)

EXPORT_METRICS = ("tensors", "bytes", "iteration", "logit_error")
"""What an export measures (stages/export.py)."""


def gate_problems(recipe: Recipe, stage: Stage) -> Iterator[Problem]:
    """Every gate that is none, or whose metric the stage will not have as far as that is known."""
    path = f"stages.{stage.name}.gates"
    for text in stage.gates:
        try:
            gate = Gate.parse(text)
        except UserError as error:
            yield Problem(path, error.found, error.expected, error.fix)
            continue
        if isinstance(stage, EvaluateStage):
            known = evaluation_metrics(recipe.evaluation, stage)
            yield from unknown(path, [gate.metric], known, "a metric of the stage")
        elif isinstance(stage, ExportStage):
            yield from unknown(path, [gate.metric], EXPORT_METRICS, "a metric of the stage")
        elif isinstance(stage, TrainingStage):
            yield from _of_training(stage, gate.metric, path)


def _of_training(stage: TrainingStage, metric: str, path: str) -> Iterator[Problem]:
    """A set of the validation, or what a draft's acceptance there is said by."""
    area, *parts = metric.split(".")
    sets = stage.validation.sets
    if area == "acceptance" and isinstance(stage, DistillStage):
        if not parts and not sets:
            fix = "Name a held-out set in validation.sets."
            yield Problem(path, f"'{metric}'", "a held-out set to measure it on", fix)
        yield from unknown(path, parts[:1], ("before", "after"), "before or after the training")
        parts = parts[1:]
    elif area != "validation":
        return
    yield from unknown(path, parts[:1], sets, "a set of the stage's validation.sets")
