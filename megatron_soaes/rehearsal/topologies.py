"""The runs of a rehearsal: one, or several where a layout splits more ways than fit at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_soaes.pipeline.dependencies import all_before
from megatron_soaes.recipe.graph import layout_of
from megatron_soaes.recipe.schema import AnyStage, ModelName, Recipe
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.rehearsal.changes import with_parts
from megatron_soaes.rehearsal.layouts import MOST_DIMENSIONS, only, pair_cover, used_dimensions
from megatron_soaes.stages.registry import stages_of


@dataclass(frozen=True)
class Rehearsed:
    """One run of the small recipe."""

    recipe: Recipe
    """With a workdir of its own."""
    stages: tuple[str, ...]
    """Stages of the recipe that are rehearsed in it; the others only make what these read."""


def runs_of(recipe: Recipe, folder: Path) -> list[Rehearsed]:
    """The runs, `folder/run-1` and so on, in which each stage's layout has 8 processes at most.

    The first has every stage. Where a layout of the small `recipe` splits four ways, further runs
    take three of them at a time, so that each pair of dimensions is there together in one run at
    least; they have only the stages with such a layout and, on one process, what these read.
    """
    counts = _counts(recipe)
    return [
        _run(recipe, number, folder / f"run-{number + 1}", counts)
        for number in range(max(counts.values(), default=1))
    ]


def _counts(recipe: Recipe) -> dict[str, int]:
    """In how many runs each stage is; one that is a single process whatever its layout in one."""
    stages = stages_of(recipe)
    return {
        one.name: len(_choices(layout_of(recipe, one)))
        if stages[one.name].plan().processes > 1
        else 1
        for one in recipe.stages
    }


def _choices(layout: Layout) -> list[Layout]:
    """The layouts that stand for one: itself, or several of fewer dimensions."""
    dimensions = used_dimensions(layout)
    if len(dimensions) <= MOST_DIMENSIONS:
        return [layout]
    return [only(layout, chosen) for chosen in pair_cover(dimensions, MOST_DIMENSIONS)]


def _run(recipe: Recipe, number: int, workdir: Path, counts: dict[str, int]) -> Rehearsed:
    names = {name for name, count in counts.items() if number < count}
    models: tuple[ModelName, ...] = ("target", "draft")
    small_models = {
        name: with_parts(model, layout=_chosen(model.layout, number))
        for name in models
        if (model := recipe.models.get(name)) is not None
    }
    small = with_parts(
        recipe,
        workdir=workdir,
        models=with_parts(recipe.models, **small_models),
        stages=[_stage(one, number) for one in recipe.stages],
    )
    if number:
        small = _pruned(small, names)
    return Rehearsed(small, tuple(one.name for one in recipe.stages if one.name in names))


def _stage(stage: AnyStage, number: int) -> AnyStage:
    return with_parts(stage, layout=_chosen(stage.layout, number)) if stage.layout else stage


def _chosen(layout: Layout, number: int) -> Layout:
    choices = _choices(layout)
    return choices[number] if number < len(choices) else Layout()


def _pruned(recipe: Recipe, names: set[str]) -> Recipe:
    """The recipe with these stages and those whose results reach them."""
    plans = {name: stage.plan() for name, stage in stages_of(recipe).items()}
    needed = names.union(*(all_before(name, plans) for name in names))
    kept = [one for one in recipe.stages if one.name in needed]
    # Targets speak of evaluations, which may be left out.
    evaluation = with_parts(recipe.evaluation, targets=[]) if recipe.evaluation.targets else None
    small = with_parts(recipe, stages=kept)
    return with_parts(small, evaluation=evaluation) if evaluation else small
