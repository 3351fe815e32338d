"""Settings of a stage, beside FP8, that only Transformer Engine has."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_soaes.recipe.problems import Problem
from megatron_soaes.recipe.schema import TrainingStage
from megatron_soaes.recipe.training_settings import Kernels

PRECISION_AWARE_SINCE = "2.1.0"
"""First version whose FusedAdam keeps the rest of a main weight (Megatron-Core 0.16.1,
OptimizerConfig)."""


def engine_settings(stage: TrainingStage) -> Iterator[tuple[str, str]]:
    """Each setting of the stage that needs it, by its field, with its value."""
    path = f"stages.{stage.name}"
    if stage.optimizer.precision_aware is not None:
        yield f"{path}.optimizer.precision_aware", "set"
    for name in Kernels.model_fields:
        if getattr(stage.kernels, name):
            yield f"{path}.kernels.{name}", "true"


def engine_arithmetic(stage: TrainingStage) -> Iterator[Problem]:
    """Broken rules of these settings that need no machine."""
    aware = stage.optimizer.precision_aware
    if aware is not None and stage.precision.dtype != "bf16":
        rule = "nothing with fp32 weights, which are their own main weights"
        fix = "Set precision.dtype to bf16, or leave it out."
        yield Problem(f"stages.{stage.name}.optimizer.precision_aware", "set", rule, fix)
