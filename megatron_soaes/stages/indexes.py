"""Build the sample indexes of a run before its jobs start, so that no GPU waits for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized

from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.schema import EvaluateStage, Recipe, TrainingStage
from megatron_soaes.stages.datasets import held_out_windows, training_blend, window_settings


def build_indexes(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Build or find every index the stages will ask for; `say` gets a line a stage.

    One process, no process group. Raises RecipeErrors for an unsound recipe and UserError when a
    dataset is not tokenized yet.
    """
    shapes = check(recipe)
    for stage in recipe.stages:
        if not isinstance(stage, TrainingStage | EvaluateStage):
            continue
        source = graph.model_of(recipe, stage)
        vocab_size = shapes[stage.model].vocab_size
        if isinstance(stage, TrainingStage):
            settings = window_settings(recipe, source, stage.sequence_length, vocab_size)
            blend = training_blend(recipe, stage, settings)
            sets = held_out_windows(recipe, stage.validation.sets, settings)
            say(f"{stage.name}: {len(blend):,} training windows, {_describe(sets)}")
        else:
            length = recipe.evaluation.sequence_length
            settings = window_settings(recipe, source, length, vocab_size)
            sets = held_out_windows(recipe, recipe.evaluation.perplexity, settings)
            say(f"{stage.name}: {_describe(sets)}")


def _describe(sets: Mapping[str, Sized]) -> str:
    return ", ".join(f"{name} {len(windows):,} windows" for name, windows in sets.items())
