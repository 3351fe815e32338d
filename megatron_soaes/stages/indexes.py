"""Build the sample indexes of a run before its jobs start, so that no GPU waits for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized

from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.schema import CaptureStage, EvaluateStage, Recipe, TrainingStage
from megatron_soaes.stages.datasets import held_out_sets, reading_for
from megatron_soaes.stages.mixtures import too_long_of, training_mixture


def build_indexes(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Build or find every index the stages will ask for; `say` gets a line a stage.

    One process, no process group. Raises RecipeErrors for an unsound recipe and UserError when a
    dataset is not tokenized yet.
    """
    shapes = check(recipe)
    for stage in recipe.stages:
        if not isinstance(stage, TrainingStage | CaptureStage | EvaluateStage):
            continue
        if isinstance(stage, EvaluateStage) and not recipe.evaluation.perplexity:
            continue
        source, shape = graph.model_of(recipe, stage), shapes[stage.model]
        if isinstance(stage, EvaluateStage):
            reading = reading_for(recipe, source, shape, recipe.evaluation.sequence_length)
            sets = held_out_sets(reading, recipe.evaluation.perplexity, "refuse")
            say(f"{stage.name}: {_describe(sets)}")
        elif waits_for := _answers_to_come(recipe, stage):
            say(f"{stage.name}: reads what '{waits_for}' answers, so its index is made in the run")
        else:
            reading = reading_for(recipe, source, shape, stage.sequence_length)
            mixture, steps = training_mixture(reading, stage)
            held_out = stage.validation
            names = held_out if isinstance(held_out, list) else held_out.sets
            sets = held_out_sets(reading, names, too_long_of(recipe, stage))
            samples = len(mixture.source_ids)
            say(f"{stage.name}: {samples:,} training samples, {steps:,} steps, {_describe(sets)}")


def _answers_to_come(recipe: Recipe, stage: TrainingStage | CaptureStage) -> str | None:
    """The respond stage whose answers a stage reads, if it reads any."""
    datasets = (recipe.data.datasets[name] for name in graph.datasets_of(recipe, stage))
    return next((one.responses for one in datasets if one.responses), None)


def _describe(sets: Mapping[str, Sized]) -> str:
    return ", ".join(f"{name} {len(samples):,} samples" for name, samples in sets.items())
