"""Whether the weights that a run starts from are those of the models it builds."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_soaes.checkpoint import directory
from megatron_soaes.checkpoint.hf_check import check_tensors
from megatron_soaes.checkpoint.hf_files import HFWeights
from megatron_soaes.checkpoint.import_megatron import describe_model
from megatron_soaes.checkpoint.megatron_directory import open_megatron
from megatron_soaes.checkpoint.model_weights import check_weights
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.models.families import weight_table
from megatron_soaes.preflight.findings import Found
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.megatron_shapes import refuse_other_shape
from megatron_soaes.recipe.schema import (
    DistillStage,
    EvaluateStage,
    ModelName,
    ModelSource,
    Recipe,
    SpeculateStage,
    Stage,
    TrainingStage,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.stages.locations import checkpoint_root


def check_source(source: ModelSource, shape: ModelShape) -> Found:
    """Names and shapes of the tensors to be imported; only headers are read."""
    if source.weights is None:
        weights = HFWeights(source.source)
        check_tensors(weights, shape, weight_table(shape))
        yield f"{source.source}: {len(weights.tensors)} tensors, as config.json says"
        return
    checkpoint = open_megatron(source.weights)
    described = describe_model(checkpoint, source.source, source.config)
    refuse_other_shape(described.shape, shape, checkpoint.where)
    check_weights(TorchDistReader(checkpoint.directory), shape)
    yield f"{checkpoint.directory}: the weights of this model"


def checkpoints_at_hand(recipe: Recipe) -> list[tuple[str, ModelName]]:
    """The checkpoints, `NAME@best` among them, that stages load and that were made already."""
    wanted = dict.fromkeys(one for stage in recipe.stages for one in _loaded(recipe, stage))
    return [
        (name, model)
        for name, model in wanted
        if (checkpoint_root(recipe, name, model) / _tracker(name)).exists()
    ]


def _loaded(recipe: Recipe, stage: Stage) -> Iterator[tuple[str, ModelName]]:
    """What a stage starts from, reads or goes on with."""
    if isinstance(stage, SpeculateStage):
        return
    if isinstance(stage, EvaluateStage):
        yield from ((name, stage.model) for name in stage.checkpoints)
        return
    yield graph.start_of(recipe, stage), stage.model
    if isinstance(stage, TrainingStage):
        yield stage.name, stage.model
    if isinstance(stage, DistillStage):
        if stage.teacher is not None:
            yield stage.teacher, "target"
        if stage.objective.selection is not None:
            yield stage.objective.selection.reference, stage.model


def _tracker(checkpoint: str) -> str:
    return directory.BEST_TRACKER if checkpoint.endswith(graph.BEST) else directory.TRACKER


def check_checkpoint(recipe: Recipe, name: str, model: ModelName, shape: ModelShape) -> Found:
    """Keys and shapes of a checkpoint that a stage is to load."""
    root = checkpoint_root(recipe, name, model)
    best = name.endswith(graph.BEST)
    iteration = directory.best_iteration(root) if best else directory.require_iteration(root)
    where = directory.iteration_directory(root, iteration)
    check_weights(TorchDistReader(where), shape)
    yield f"{where}: the weights of this model"
