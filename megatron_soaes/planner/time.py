"""Seconds of one optimizer step, by arithmetic: a stated model, calibrated on published runs.

docs/planner.md has the model and what it gets wrong. Nothing here was measured by us.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_soaes.errors import UserError
from megatron_soaes.planner.activations import WIDTHS, sizes_of
from megatron_soaes.planner.hardware import Rates, rates_of
from megatron_soaes.planner.lasting import (
    fp8_matrices,
    gradient_width,
    state_width,
    update_width,
    weight_bytes,
)
from megatron_soaes.planner.parameters import layers_of, rank_parameters
from megatron_soaes.planner.stage_time import (
    CAST_BYTES,
    StagePass,
    link_of,
    stage_pass,
)
from megatron_soaes.planner.workload import Workload


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step (of one round of forward passes where nothing is trained), by cause.

    They add up: what goes on beside computation is not counted.
    """

    compute: float
    """On the slowest pipeline stage, recomputation included."""
    pipeline_bubble: float
    tensor_parallel: float
    context_parallel: float
    pipeline_parallel: float
    data_parallel: float
    optimizer: float
    tokens: int
    """Of the step, all replicas together."""
    model_flops: float
    """Of the step, without recomputation (recipe/shapes.py)."""
    gpus: int
    peak_tflops: float
    """Of one GPU in the arithmetic of the products, by the datasheet."""

    @property
    def total(self) -> float:
        """The whole step."""
        communication = self.tensor_parallel + self.context_parallel + self.pipeline_parallel
        rest = self.pipeline_bubble + self.data_parallel + self.optimizer
        return self.compute + communication + rest

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together."""
        return self.tokens / self.total

    @property
    def tflops(self) -> float:
        """Model TFLOP/s of each GPU."""
        return self.model_flops / self.total / self.gpus / 1e12

    @property
    def mfu(self) -> float:
        """Model FLOPs over those of the datasheet: of FP8 where products are in FP8."""
        return self.tflops / self.peak_tflops


def step_time(workload: Workload, gpu_kind: str, gpus_per_node: int) -> StepTime:
    """How long a step takes on GPUs of one kind, `gpus_per_node` of them linked by NVLink.

    Raises UserError for FP8 on GPUs without it and KeyError for a kind that `recipe.gpus.GPUS` does
    not have.
    """
    layout, rates = workload.layout, rates_of(gpu_kind)
    peak = _peak(workload, gpu_kind, rates)
    stages = range(layout.pipeline_parallel)
    passes = [stage_pass(workload, stage, gpus_per_node, rates) for stage in stages]
    slowest = max(stages, key=lambda stage: passes[stage].total.total)
    busy = [one.total.total for one in passes]
    times, one = workload.micro_batches, passes[slowest].total
    trained = workload.optimizer is not None
    return StepTime(
        compute=times * one.compute,
        # Every other stage is waited for once, of a chunk only with virtual stages
        # (Narayanan et al., arXiv 2104.04473: (p - 1) / (m v) of the step).
        pipeline_bubble=(sum(busy) - busy[slowest]) / layout.virtual_pipeline,
        tensor_parallel=times * one.tensor_parallel,
        context_parallel=times * one.context_parallel,
        pipeline_parallel=_messages(workload, busy[slowest], gpus_per_node, rates),
        data_parallel=_replicas(workload, passes, gpus_per_node, rates) if trained else 0.0,
        optimizer=max(_update(workload, stage, rates) for stage in stages) if trained else 0.0,
        tokens=workload.global_batch_size * workload.sequence_length,
        model_flops=_model_flops(workload),
        gpus=layout.processes,
        peak_tflops=peak / 1e12,
    )


def _model_flops(workload: Workload) -> float:
    """Forward and backward of what is trained, a third of that for what is only read."""
    length = workload.sequence_length
    each = workload.shape.flops_per_token(length)
    if workload.optimizer is None:
        each /= 3
    each += sum(one.shape.flops_per_token(length) for one in workload.read_only) / 3
    return each * workload.global_batch_size * length


def _peak(workload: Workload, gpu_kind: str, rates: Rates) -> float:
    if workload.precision.fp8 is None:
        return rates.fp32 if workload.precision.dtype == "fp32" else rates.bf16
    if rates.fp8 is None:
        fix = "Remove precision.fp8, or name a GPU that has it."
        raise UserError("precision.fp8", f"FP8 on {gpu_kind}", "a GPU with FP8", fix)
    return rates.fp8


def _messages(workload: Workload, busy: float, gpus_per_node: int, rates: Rates) -> float:
    """Hidden states (and their gradients) from stage to stage, as far as they show.

    Without virtual stages a stage waits for each message. With them messages go beside the next
    chunk; what shows is the first way through, and what a micro-batch's work cannot hide.
    """
    layout = workload.layout
    stages, chunks = layout.pipeline_parallel, layout.virtual_pipeline
    if stages == 1:
        return 0.0
    sizes = sizes_of(workload, workload.shape)
    link = link_of(stages, layout.processes // stages, gpus_per_node, rates)
    directions = 1 if workload.optimizer is None else 2
    each = directions * link.seconds(sizes.shared * sizes.hidden * sizes.width)
    if chunks == 1 or not workload.overlap.pipeline:
        return (chunks * workload.micro_batches + stages - 1) * each
    return (stages - 1) * each + workload.micro_batches * max(0.0, chunks * each - busy)


def _replicas(
    workload: Workload, passes: list[StagePass], gpus_per_node: int, rates: Rates
) -> float:
    """Gradients reduced and weights gathered over replicas, on the stage that waits longest.

    What overlaps does so with the backward, or the forward, pass of one micro-batch; the last
    layer's gradients and the first layer's weights always show.
    """
    layout, overlap = workload.layout, workload.overlap
    sharing = layout.data_parallel * layout.context_parallel
    if sharing == 1:
        return 0.0
    link = link_of(sharing, layout.tensor_parallel, gpus_per_node, rates)
    others, waits = (sharing - 1) / sharing, []
    for stage, one in enumerate(passes):
        layers = sum(layers_of(layout, workload.shape.layers, stage))
        numbers = others * rank_parameters(workload, stage)
        reduced = link.seconds(numbers * gradient_width(workload))
        gathered = link.seconds(others * weight_bytes(workload, stage))
        if overlap.grad_reduce:
            reduced = max(reduced - one.backward.total, reduced / layers)
        if overlap.param_gather:
            gathered = max(gathered - one.forward.total, gathered / layers)
        waits.append(reduced + gathered)
    return max(waits)


def _update(workload: Workload, stage: int, rates: Rates) -> float:
    """Memory traffic of AdamW, the gradient's norm, zeroed buffers and FP8 copies of weights.

    A rank reads and writes its share of moments and main weights and reads its gradients twice; it
    writes all its buffers once. What is widened for the update is written and read twice.
    """
    assert workload.optimizer is not None
    layout, weight = workload.layout, WIDTHS[workload.precision.dtype]
    state, gradient = state_width(workload), gradient_width(workload)
    parameters = rank_parameters(workload, stage)
    share = parameters / (layout.data_parallel * layout.context_parallel)
    each = 2 * state + 2 * gradient + weight + 4 * update_width(workload)
    traffic = share * each + parameters * gradient
    if workload.precision.fp8 is not None:
        traffic += fp8_matrices(workload, stage) * CAST_BYTES[workload.precision.fp8.recipe]
    return traffic / rates.memory
