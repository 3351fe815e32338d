"""The control of a curriculum, added to a recipe that does not have it."""

from __future__ import annotations

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.graph import start_of
from megatron_soaes.recipe.schema import (
    AnyStage,
    EvaluateStage,
    Recipe,
    SFTStage,
    SingleStage,
    TrainingStage,
)


def with_single_stage(recipe: Recipe) -> Recipe:
    """The recipe with a single-stage control behind each line of sft stages.

    A control `LAST-single` trains on exactly the samples of the line that ends with LAST, from the
    line's start, with LAST's other settings; every evaluation of LAST measures it too. Raises
    UserError when no two sft stages follow each other, or when a line's batches differ.
    """
    lines = _lines(recipe)
    if not lines:
        raise UserError(
            f"recipe '{recipe.name}'", "no two sft stages, one from the other",
            "a curriculum to compare with a single stage", "Run it without --single-stage.",
        )  # fmt: skip
    names = {line[-1].name: f"{line[-1].name}-single" for line in lines}
    controls = {line[-1].name: _control(line, names[line[-1].name]) for line in lines}
    stages: list[AnyStage] = []
    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage):
            also = [names[name] for name in stage.checkpoints if name in names]
            stages.append(stage.model_copy(update={"checkpoints": [*stage.checkpoints, *also]}))
        else:
            stages.append(stage)
        if stage.name in controls:
            stages.append(controls[stage.name])
    return recipe.model_copy(update={"stages": stages})


def _lines(recipe: Recipe) -> list[list[SFTStage]]:
    """Every chain of two or more sft stages of which each starts from the one before."""
    lines: list[list[SFTStage]] = []
    for stage in recipe.stages:
        if not isinstance(stage, SFTStage):
            continue
        start = start_of(recipe, stage)
        before = next((line for line in lines if line[-1].name == start), None)
        if before is None:
            lines.append([stage])
        else:
            before.append(stage)
    return [line for line in lines if len(line) > 1]


def _control(line: list[SFTStage], name: str) -> SingleStage:
    last = line[-1]
    common = {field: getattr(last, field) for field in TrainingStage.model_fields}
    return SingleStage(
        **(common | {"name": name, "kind": "sft_single_stage", "after": None, "gates": []}),
        of=[stage.name for stage in line],
    )
