"""Rules of SFT stages: what they may train on, for how long, and what a control must share."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_soaes.recipe.problems import Problem, did_you_mean
from megatron_soaes.recipe.schema import (
    CaptureStage,
    CPTStage,
    DistillStage,
    Recipe,
    SFTStage,
    SingleStage,
)

COMMON = ("model", "sequence_length", "global_batch_size")
"""What a single-stage control must have in common with the stages whose samples it takes."""


def check_blend_kind(recipe: Recipe, stage: CPTStage | SFTStage) -> Iterator[Problem]:
    """Documents for cpt; for sft conversations, and documents only by a share of the steps."""
    path, blend = f"stages.{stage.name}", recipe.data.blends[stage.blend]
    datasets = recipe.data.datasets
    known = [name for name in blend.names() if name in datasets]
    if isinstance(stage, CPTStage):
        for name in known:
            if datasets[name].is_chat:
                fix = "Train on it in a stage of kind sft."
                yield Problem(f"{path}.blend", f"conversations '{name}'", "documents only", fix)
        return
    if not any(datasets[name].is_chat for name in known):
        fix = "Add a dataset with `conversations`, or make it a stage of kind cpt."
        yield Problem(f"{path}.blend", f"'{stage.blend}' without conversations", "some", fix)
    if (stage.steps is None) == (stage.epochs is None):
        found = "both steps and epochs" if stage.steps else "neither steps nor epochs"
        yield Problem(path, found, "exactly one of them", "Give `steps` or `epochs`.")
    yield from check_passes(recipe, stage)


def check_passes(
    recipe: Recipe, stage: SFTStage | DistillStage | CaptureStage
) -> Iterator[Problem]:
    """Passes are counted over conversations; documents come by samples or as replay."""
    if stage.epochs is None or stage.blend is None or stage.blend not in recipe.data.blends:
        return
    path, blend = f"stages.{stage.name}", recipe.data.blends[stage.blend]
    other = "samples" if isinstance(stage, CaptureStage) else "steps"
    for name in blend.weights:
        if name in recipe.data.datasets and not recipe.data.datasets[name].is_chat:
            fix = f"Give `{other}`, or move it to the blend's replay."
            found = f"documents '{name}'"
            yield Problem(f"{path}.epochs", found, "conversations, which have passes", fix)
    if blend.replay and blend.replay.share == 1:
        fix = f"Lower the share, or give `{other}`."
        yield Problem(f"{path}.epochs", "nothing but replay", "a replay share below 1", fix)


def check_single_stage(recipe: Recipe, stage: SingleStage) -> Iterator[Problem]:
    """Its parts are sft stages above it whose samples fit its own sequences and batches."""
    path = f"stages.{stage.name}"
    above = recipe.stages[: [one.name for one in recipe.stages].index(stage.name)]
    known = {one.name: one for one in above if isinstance(one, SFTStage)}
    for name in stage.of:
        part = known.get(name)
        if part is None:
            fix = did_you_mean(name, known)
            yield Problem(f"{path}.of", f"'{name}'", "an sft stage above it", fix)
            continue
        for field in COMMON:
            mine, theirs = getattr(stage, field), getattr(part, field)
            if mine != theirs:
                fix = "Give all of them the same: the control takes the very same samples."
                yield Problem(f"{path}.{field}", str(mine), f"{theirs}, that of '{name}'", fix)
    if len(set(stage.of)) < len(stage.of):
        fix = "Name each stage once."
        yield Problem(f"{path}.of", ", ".join(stage.of), "each stage once", fix)
