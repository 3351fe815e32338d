"""Which models the jobs of a recipe build rank by rank, and which of them are built alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megatron_soaes.models.build import BuildOptions
from megatron_soaes.preflight.findings import Finding, Found, Unseen, look
from megatron_soaes.preflight.ranks import build_ranks, check_built
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.schema import (
    DistillStage,
    EvaluateStage,
    ModelName,
    PreciseStage,
    Recipe,
    RespondStage,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Precision
from megatron_soaes.stages import evaluate, respond
from megatron_soaes.stages.subjects import options_of
from megatron_soaes.training.engine import build_options

Shapes = Mapping[ModelName, ModelShape]


@dataclass(frozen=True)
class Building:
    """A model as one stage builds it."""

    whose: str
    """The stage, for people."""
    shape: ModelShape
    options: BuildOptions


def look_at_layouts(recipe: Recipe, shapes: Shapes) -> Iterator[Finding]:
    """Build the ranks of every stage, once for all that build the same model in the same way."""
    alike: dict[str, list[Building]] = {}
    for one in buildings(recipe, shapes):
        alike.setdefault(f"{one.shape} {one.options}", []).append(one)
    for same in alike.values():
        whose = ", ".join(one.whose for one in same)
        yield look(f"ranks of {whose}", _built(same[0]))
    yield look("ranks of other stages", _unbuilt(recipe))


def buildings(recipe: Recipe, shapes: Shapes) -> Iterator[Building]:
    """The models of all stages that train or capture, and of others on several processes."""
    for stage in recipe.stages:
        shape, source = shapes[stage.model], graph.model_of(recipe, stage)
        if isinstance(stage, PreciseStage):
            # The layers of an FP8 stage have the same weights.
            precision = stage.precision.model_copy(update={"fp8": None})
            options = build_options(shape, source, graph.layout_of(recipe, stage), precision)
            yield Building(stage.name, shape, options)
            if isinstance(stage, DistillStage) and stage.teacher is not None:
                # Padded as the student is, so that both give logits of the same columns.
                yield Building(f"the teacher of {stage.name}", shapes["target"], options)
        elif isinstance(stage, EvaluateStage):
            layout = evaluate.EvaluateStage(recipe, stage).layout()
            if layout.processes > 1:
                options = build_options(shape, source, layout, Precision(dtype=stage.dtype))
                yield Building(stage.name, shape, options)
        elif isinstance(stage, RespondStage):
            layout = respond.RespondStage(recipe, stage).layout()
            if layout.processes > 1:
                options = options_of(source.source, shape, layout, stage.dtype)
                yield Building(stage.name, shape, options)


def _built(one: Building) -> Found:
    built = build_ranks(one.shape, one.options)
    wrong = list(check_built(built, one.shape, one.options.padded_vocab_size))
    yield from wrong
    if not wrong:
        yield (
            f"{one.options.layout.processes} ranks, {built.ranks} of them distinct: each is built, "
            f"has as many parameters as planned ({built.largest_bytes / 2**30:.2f} GiB of weights "
            f"at most), and together they hold each of {len(built.shapes)} tensors once"
        )


def _unbuilt(recipe: Recipe) -> Found:
    for stage in recipe.stages:
        if isinstance(stage, RespondStage) and stage.backend != "megatron":
            where = f"behind {stage.url}" if stage.backend == "endpoint" else "whole on one device"
            yield Unseen(f"the model of the stage {stage.name}, which is {where}")
