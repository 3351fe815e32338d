"""Whether the weights that a run starts from are those of the models it builds."""

from __future__ import annotations

from pathlib import Path

from megatron_soaes.checkpoint import directory
from megatron_soaes.checkpoint.hf_check import check_tensors
from megatron_soaes.checkpoint.hf_files import HFWeights
from megatron_soaes.checkpoint.import_megatron import describe_model
from megatron_soaes.checkpoint.megatron_directory import open_megatron
from megatron_soaes.checkpoint.model_weights import check_weights
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.models.families import weight_table
from megatron_soaes.preflight.findings import Found
from megatron_soaes.recipe.megatron_shapes import refuse_other_shape
from megatron_soaes.recipe.schema import ModelSource
from megatron_soaes.recipe.shapes import ModelShape


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


def check_checkpoint(root: Path, shape: ModelShape) -> Found:
    """Keys and shapes of the newest checkpoint under `root`, which a stage is to load."""
    where = directory.iteration_directory(root, directory.require_iteration(root))
    check_weights(TorchDistReader(where), shape)
    yield f"{where}: the weights of this model"
