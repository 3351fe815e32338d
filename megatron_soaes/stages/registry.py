"""Which class runs which node of a run's graph."""

from __future__ import annotations

from megatron_soaes.recipe import graph
from megatron_soaes.recipe.schema import CaptureStage as CaptureSettings
from megatron_soaes.recipe.schema import (
    CPTStage,
    DistillStage,
    ModelName,
    Recipe,
    SFTStage,
    SingleStage,
)
from megatron_soaes.recipe.schema import EvaluateStage as EvaluateSettings
from megatron_soaes.recipe.schema import ExportStage as ExportSettings
from megatron_soaes.recipe.schema import RespondStage as RespondSettings
from megatron_soaes.recipe.schema import SpeculateStage as SpeculateSettings
from megatron_soaes.stages.base import Stage
from megatron_soaes.stages.capture import CaptureStage
from megatron_soaes.stages.evaluate import EvaluateStage
from megatron_soaes.stages.export import ExportStage
from megatron_soaes.stages.import_model import ImportStage
from megatron_soaes.stages.preprocess import PreprocessStage
from megatron_soaes.stages.respond import RespondStage
from megatron_soaes.stages.speculate import SpeculateStage
from megatron_soaes.stages.train import TrainStage


def stages_of(recipe: Recipe) -> dict[str, Stage]:
    """Every node of the run by name, in the order in which they run."""
    found: dict[str, Stage] = {}
    for dataset in recipe.data.datasets:
        name = graph.preprocess_node(dataset)
        found[name] = PreprocessStage(recipe, name, dataset)
    models: tuple[ModelName, ...] = ("target", "draft")
    for model in models:
        name = graph.import_node(model)
        found[name] = ImportStage(recipe, name, model)
    for settings in recipe.stages:
        match settings:
            case CPTStage() | SFTStage() | SingleStage() | DistillStage():
                found[settings.name] = TrainStage(recipe, settings)
            case RespondSettings():
                found[settings.name] = RespondStage(recipe, settings)
            case CaptureSettings():
                found[settings.name] = CaptureStage(recipe, settings)
            case EvaluateSettings():
                found[settings.name] = EvaluateStage(recipe, settings)
            case ExportSettings():
                found[settings.name] = ExportStage(recipe, settings)
            case SpeculateSettings():
                found[settings.name] = SpeculateStage(recipe, settings)
    return {name: found[name] for name in graph.nodes(recipe)}
