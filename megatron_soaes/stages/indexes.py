"""Build the sample indexes of a run before its jobs start, so that no GPU waits for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized

from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.schema import EvaluateStage, Recipe, TrainingStage
from megatron_soaes.stages.datasets import held_out_sets, reading_for
from megatron_soaes.stages.mixtures import too_long_of, training_mixture


def build_indexes(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Build or find every index the stages will ask for; `say` gets a line a stage.

    One process, no process group. Raises RecipeErrors for an unsound recipe and UserError when a
    dataset is not tokenized yet.
    """
    shapes = check(recipe)
    for stage in recipe.stages:
        if not isinstance(stage, TrainingStage | EvaluateStage):
            continue
        if isinstance(stage, EvaluateStage) and not recipe.evaluation.perplexity:
            continue
        source, shape = graph.model_of(recipe, stage), shapes[stage.model]
        if isinstance(stage, EvaluateStage):
            reading = reading_for(recipe, source, shape, recipe.evaluation.sequence_length)
            sets = held_out_sets(reading, recipe.evaluation.perplexity, "refuse")
            say(f"{stage.name}: {_describe(sets)}")
        else:
            reading = reading_for(recipe, source, shape, stage.sequence_length)
            mixture, steps = training_mixture(reading, stage)
            sets = held_out_sets(reading, stage.validation.sets, too_long_of(stage))
            samples = len(mixture.source_ids)
            say(f"{stage.name}: {samples:,} training samples, {steps:,} steps, {_describe(sets)}")


def _describe(sets: Mapping[str, Sized]) -> str:
    return ", ".join(f"{name} {len(samples):,} samples" for name, samples in sets.items())
