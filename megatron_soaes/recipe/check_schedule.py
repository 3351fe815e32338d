"""Rules of a stage's learning rate over its steps."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_soaes.recipe.problems import Problem
from megatron_soaes.recipe.schema import TrainingStage
from megatron_soaes.recipe.training_settings import Schedule


def check_schedule(stage: TrainingStage, steps: int | None) -> Iterator[Problem]:
    """Rules of the learning rate; those about lengths only where the `steps` are known."""
    path = f"stages.{stage.name}.schedule"
    schedule, lr, min_lr = stage.schedule, stage.optimizer.lr, stage.optimizer.min_lr
    warmup = schedule.warmup_steps
    if min_lr > lr:
        field = f"stages.{stage.name}.optimizer.min_lr"
        yield Problem(field, f"{min_lr:g}", f"at most lr, {lr:g}", "Lower min_lr or raise lr.")
    if steps is not None and warmup > steps:
        fix = "Shorten the warm-up, or train longer."
        yield Problem(f"{path}.warmup_steps", str(warmup), f"at most steps, {steps}", fix)
    if schedule.warmup_from_lr > lr:
        fix = "Start the ramp below the peak."
        found = f"{schedule.warmup_from_lr:g}"
        yield Problem(f"{path}.warmup_from_lr", found, f"at most lr, {lr:g}", fix)
    if schedule.warmup_from_lr > 0 and warmup == 0:
        fix = "Set warmup_steps, or remove warmup_from_lr."
        found = f"{schedule.warmup_from_lr:g}"
        yield Problem(f"{path}.warmup_from_lr", found, "0 without warm-up steps", fix)
    if schedule.shape == "constant" and min_lr > 0:
        field = f"stages.{stage.name}.optimizer.min_lr"
        fix = "Remove min_lr, or choose cosine or wsd."
        yield Problem(field, f"{min_lr:g}", "0: the constant schedule has no decay", fix)
    if schedule.shape == "wsd":
        if steps is not None:
            decay = schedule.decay_steps or steps // 10
            if warmup <= steps < warmup + decay:
                rule = f"at most {steps - warmup}, the steps after the warm-up"
                yield Problem(f"{path}.decay_steps", str(decay), rule, "Shorten the decay.")
        return
    for name in ("decay_steps", "decay_shape"):
        value = getattr(schedule, name)
        if value != Schedule.model_fields[name].default:
            fix = "Remove it, or choose shape: wsd."
            yield Problem(f"{path}.{name}", str(value), f"nothing with {schedule.shape}", fix)
