"""What the planner says of a training stage on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from megatron_soaes.planner.activations import Implementation
from megatron_soaes.planner.memory import rank_memory
from megatron_soaes.planner.time import step_time
from megatron_soaes.planner.workload import workload_of
from megatron_soaes.recipe.schema import ModelName, Recipe, TrainingStage
from megatron_soaes.recipe.shapes import ModelShape

if TYPE_CHECKING:
    from megatron_soaes.training.forecast import Forecast


def forecast_of(
    recipe: Recipe, stage: TrainingStage, shapes: Mapping[ModelName, ModelShape]
) -> Forecast:
    """Memory of each pipeline stage, and the speed where the cluster names its GPUs."""
    from megatron_soaes.accelerator.device import this_device
    from megatron_soaes.training.forecast import Forecast

    device = this_device()
    workload = workload_of(recipe, stage, shapes)
    layers: Implementation = "transformer_engine" if device.has_transformer_engine else "local"
    memory = tuple(
        rank_memory(workload, number, layers).allocated
        for number in range(workload.layout.pipeline_parallel)
    )
    cluster = recipe.cluster
    if cluster is None or not device.is_cuda:
        return Forecast(memory, None)
    step = step_time(workload, cluster.gpu, cluster.gpus_per_node)
    return Forecast(memory, step.tokens_per_second)
