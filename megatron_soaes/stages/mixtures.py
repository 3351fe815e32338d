"""What each kind of training stage trains on, and for how many steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from megatron_soaes.recipe import graph
from megatron_soaes.recipe.data_settings import Blend, Packing
from megatron_soaes.recipe.schema import (
    AnyTrainingStage,
    CaptureStage,
    CPTStage,
    DistillStage,
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


ReadingStage = AnyTrainingStage | CaptureStage
"""The stages that read samples in an order of their own."""


def mixture_config(recipe: Recipe, stage: ReadingStage) -> list[dict[str, Any]]:
    """What of the recipe decides which samples a stage reads, for a plan."""
    match stage:
        case CPTStage():
            return [{"shares": recipe.data.blends[stage.blend].shares()}]
        case SFTStage() | DistillStage() | CaptureStage():
            captured = graph.capture_of(recipe, stage) if isinstance(stage, DistillStage) else None
            if captured is not None:
                assert isinstance(stage, DistillStage)
                length = {"steps": stage.steps, "epochs": stage.epochs}
                return [{"of": mixture_config(recipe, captured), **length}]
            (blend,) = graph.blends_of(recipe, stage)
            wanted = _wanted(stage)
            length = {"samples": wanted.samples, "epochs": wanted.epochs}
            packing = wanted.packing.model_dump()
            return [{"blend": blend.model_dump(mode="json"), **length, "packing": packing}]
        case SingleStage():
            parts = graph.parts_of(recipe, stage)
            return [entry for part in parts for entry in mixture_config(recipe, part)]


def too_long_of(recipe: Recipe, stage: ReadingStage) -> TooLong:
    """What happens to a validation conversation that is too long: what happens in training."""
    match stage:
        case SFTStage() | CaptureStage():
            return stage.packing.too_long
        case DistillStage():
            return (graph.capture_of(recipe, stage) or stage).packing.too_long
    return "refuse"


def training_mixture(reading: Reading, stage: ReadingStage) -> tuple[Mixture, int]:
    """The samples of a stage in order, and its steps (of a capture: its samples)."""
    from megatron_soaes.data.blend import Passes, ShuffledUnion, TrainingBlend

    recipe = reading.recipe
    if isinstance(stage, SingleStage):
        parts = [training_mixture(reading, part) for part in graph.parts_of(recipe, stage)]
        union = ShuffledUnion([mixture for mixture, _ in parts], recipe.seed)
        return union, sum(steps for _, steps in parts)
    if isinstance(stage, DistillStage) and (capture := graph.capture_of(recipe, stage)):
        whole, count = training_mixture(reading, capture)
        batch = stage.global_batch_size
        steps = stage.steps or math.ceil((stage.epochs or 1) * count / batch)
        return Passes(whole, steps * batch, recipe.seed), steps
    wanted = _wanted(stage)
    shares, samples = _shares_and_samples(reading, wanted)
    steps = math.ceil(samples / wanted.batch)
    sources = {name: _opener(reading, name, wanted.packing) for name in recipe.data.datasets}
    return TrainingBlend(sources, shares, steps * wanted.batch), steps


@dataclass(frozen=True)
class _Wanted:
    """What of a blend a stage reads."""

    blend: str
    packing: Packing
    batch: int
    """Samples of one step."""
    samples: int | None
    """In all; None where passes decide."""
    epochs: float | None


def _wanted(stage: CPTStage | SFTStage | DistillStage | CaptureStage) -> _Wanted:
    if isinstance(stage, CaptureStage):
        return _Wanted(stage.blend, stage.packing, 1, stage.samples, stage.epochs)
    batch = stage.global_batch_size
    if isinstance(stage, CPTStage):
        return _Wanted(stage.blend, Packing(), batch, stage.steps * batch, None)
    assert stage.blend is not None
    samples = None if stage.steps is None else stage.steps * batch
    return _Wanted(stage.blend, stage.packing, batch, samples, stage.epochs)


def packing_reports(reading: Reading, stage: ReadingStage) -> dict[str, dict[str, Any]]:
    """What became of the conversations of each dataset that the stage packs."""
    reports: dict[str, dict[str, Any]] = {}
    if isinstance(stage, SingleStage):
        for part in graph.parts_of(reading.recipe, stage):
            reports |= packing_reports(reading, part)
        return reports
    if isinstance(stage, DistillStage) and graph.capture_of(reading.recipe, stage):
        return reports
    wanted = _wanted(stage)
    for name in reading.recipe.data.blends[wanted.blend].names():
        if reading.recipe.data.datasets[name].is_chat:
            reports[name] = asdict(_packs(reading, name, wanted.packing).report)
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


def _shares_and_samples(reading: Reading, wanted: _Wanted) -> tuple[Mapping[str, float], float]:
    """Share of the samples by dataset, and samples in all; passes are counted in packs."""
    blend = reading.recipe.data.blends[wanted.blend]
    if wanted.samples is not None:
        return blend.shares(), wanted.samples
    assert wanted.epochs is not None
    passes = {name: wanted.epochs * weight for name, weight in blend.weights.items()}
    samples = {
        name: times * len(_packs(reading, name, wanted.packing)) for name, times in passes.items()
    }
    samples = _with_replay(samples, blend)
    total = sum(samples.values())
    return {name: count / total for name, count in samples.items()}, total


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
