"""What each kind of training stage trains on, and for how many steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from megatron_soaes.recipe import graph
from megatron_soaes.recipe.schema import (
    AnyTrainingStage,
    Blend,
    CPTStage,
    Packing,
    Recipe,
    SFTStage,
    SingleStage,
)
from megatron_soaes.stages.datasets import (
    Reading,
    TooLong,
    conversations,
    documents,
    training_part,
)

if TYPE_CHECKING:
    from megatron_soaes.data.blend import Mixture, OpenSource
    from megatron_soaes.data.conversations import Packs


def mixture_config(recipe: Recipe, stage: AnyTrainingStage) -> list[dict[str, Any]]:
    """What of the recipe decides which samples a stage trains on, for a plan."""
    match stage:
        case CPTStage():
            return [{"shares": recipe.data.blends[stage.blend].shares()}]
        case SFTStage():
            blend = recipe.data.blends[stage.blend].model_dump(mode="json")
            length = {"steps": stage.steps, "epochs": stage.epochs}
            return [{"blend": blend, **length, "packing": stage.packing.model_dump()}]
        case SingleStage():
            parts = graph.parts_of(recipe, stage)
            return [entry for part in parts for entry in mixture_config(recipe, part)]


def too_long_of(stage: AnyTrainingStage) -> TooLong:
    """What happens to a validation conversation that is too long: what happens in training."""
    return stage.packing.too_long if isinstance(stage, SFTStage) else "refuse"


def training_mixture(reading: Reading, stage: AnyTrainingStage) -> tuple[Mixture, int]:
    """The samples of a stage in order, and its steps."""
    from megatron_soaes.data.blend import ShuffledUnion, TrainingBlend

    recipe = reading.recipe
    match stage:
        case CPTStage():
            shares: Mapping[str, float] = recipe.data.blends[stage.blend].shares()
            steps, packing = stage.steps, Packing()
        case SFTStage():
            packing = stage.packing
            shares, steps = _shares_and_steps(reading, stage)
        case SingleStage():
            parts = [training_mixture(reading, part) for part in graph.parts_of(recipe, stage)]
            union = ShuffledUnion([mixture for mixture, _ in parts], recipe.seed)
            return union, sum(steps for _, steps in parts)
    sources = {name: _opener(reading, name, packing) for name in recipe.data.datasets}
    return TrainingBlend(sources, shares, steps * stage.global_batch_size), steps


def packing_reports(reading: Reading, stage: AnyTrainingStage) -> dict[str, dict[str, Any]]:
    """What became of the conversations of each dataset that the stage packs."""
    reports: dict[str, dict[str, Any]] = {}
    match stage:
        case SFTStage():
            for name in reading.recipe.data.blends[stage.blend].names():
                if reading.recipe.data.datasets[name].is_chat:
                    reports[name] = asdict(_packs(reading, name, stage.packing).report)
        case SingleStage():
            for part in graph.parts_of(reading.recipe, stage):
                reports |= packing_reports(reading, part)
    return reports


def _opener(reading: Reading, name: str, packing: Packing) -> OpenSource:
    """How a dataset of either kind is opened for training."""
    from megatron_soaes.data.indexed import Windows

    recipe = reading.recipe
    if recipe.data.datasets[name].is_chat:
        return lambda samples: _packs(reading, name, packing)
    chosen = documents(recipe, name, training_part(recipe, name))
    number = reading.source_id(name)
    return lambda samples: Windows(chosen, samples, reading.windows(), number)


def _packs(reading: Reading, name: str, packing: Packing) -> Packs:
    from megatron_soaes.data.conversations import Packs

    chosen = conversations(reading.recipe, name, training_part(reading.recipe, name))
    return Packs(chosen, reading.packs(packing), reading.source_id(name))


def _shares_and_steps(reading: Reading, stage: SFTStage) -> tuple[Mapping[str, float], int]:
    """Share of the samples by dataset, and steps; passes are counted in packs."""
    blend = reading.recipe.data.blends[stage.blend]
    if stage.steps is not None:
        return blend.shares(), stage.steps
    assert stage.epochs is not None
    passes = {name: stage.epochs * weight for name, weight in blend.weights.items()}
    samples = {
        name: times * len(_packs(reading, name, stage.packing)) for name, times in passes.items()
    }
    samples = _with_replay(samples, blend)
    total = sum(samples.values())
    shares = {name: count / total for name, count in samples.items()}
    return shares, math.ceil(total / stage.global_batch_size)


def _with_replay(samples: dict[str, float], blend: Blend) -> dict[str, float]:
    """Samples by dataset with as many of replay as make up its share."""
    if blend.replay is None:
        return samples
    share, weights = blend.replay.share, blend.replay.weights
    total = sum(samples.values()) * share / (1 - share)
    found = dict(samples)
    for name, weight in weights.items():
        found[name] = found.get(name, 0.0) + total * weight / sum(weights.values())
    return found
