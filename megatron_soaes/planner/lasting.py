"""What a rank holds all the time: weights, their FP8 copies, gradients and the optimizer's state.

Bytes by arithmetic. What the precision-aware optimizer keeps is read in Megatron-Core 0.16.1
(optimizer/distrib_optimizer.py, optimizer_config.py) and in Transformer Engine's FusedAdam
(pytorch/optimizers/fused_adam.py), not measured.
"""

from __future__ import annotations

from megatron_soaes.planner.activations import WIDTHS, fp8_layers
from megatron_soaes.planner.parameters import layer_matrices, rank_parameters
from megatron_soaes.planner.workload import Workload


def weight_bytes(workload: Workload, stage: int) -> int:
    """A rank's weights, which replicas gather: with `fp8.param_gather` FP8 matrices are in FP8."""
    width, fp8 = WIDTHS[workload.precision.dtype], workload.precision.fp8
    size = rank_parameters(workload, stage) * width
    if fp8 is not None and fp8.param_gather:
        size -= fp8_matrices(workload, stage) * (width - WIDTHS["fp8"])
    return size


def fp8_copy_bytes(workload: Workload, stage: int) -> int:
    """The matrices of FP8 layers and, where there is a backward pass, their transposes.

    They stay from one micro-batch of a step to the next; of weights that are in FP8 themselves only
    the transposes are copies.
    """
    fp8 = workload.precision.fp8
    if fp8 is None:
        return 0
    copies = (0 if fp8.param_gather else 1) + (0 if workload.optimizer is None else 1)
    numbers = fp8_matrices(workload, stage)
    # mxfp8 has a scale of one byte for 32 numbers.
    scales = numbers // 32 if fp8.recipe == "mxfp8" else 0
    return copies * (numbers + scales)


def fp8_matrices(workload: Workload, stage: int) -> int:
    """Numbers of the matrices that a rank multiplies in FP8."""
    chunks = range(workload.layout.virtual_pipeline)
    layers = sum(sum(fp8_layers(workload, stage, chunk)) for chunk in chunks)
    return layers * layer_matrices(workload.shape, workload.layout.tensor_parallel)


def gradient_width(workload: Workload) -> int:
    """Bytes of a gradient in its buffer: fp32 unless the optimizer reads fewer bits."""
    assert workload.optimizer is not None
    aware = workload.optimizer.precision_aware
    return WIDTHS[aware.main_gradients if aware else "fp32"]


def state_width(workload: Workload) -> int:
    """Bytes that AdamW keeps of a weight: its moments and its main weight."""
    return sum(_moment_widths(workload)) + _main_width(workload)


def update_width(workload: Workload) -> int:
    """Bytes of a weight's state that are there in fp32 only while the optimizer works on them.

    FusedAdam widens what is kept in fewer bits for all weights before it begins with the first
    (not the bits that an fp32 main weight has beside a bf16 one).
    """
    assert workload.optimizer is not None
    aware, fp32 = workload.optimizer.precision_aware, WIDTHS["fp32"]
    if aware is None:
        return 0
    widened = sum(width < fp32 for width in _moment_widths(workload))
    widened += aware.main_weights != "fp32"
    # Of main weights that are Megatron-Core's own the gradients are fp32, too.
    widened += not _engine_holds_main(workload) and gradient_width(workload) < fp32
    return widened * fp32


def _moment_widths(workload: Workload) -> list[int]:
    assert workload.optimizer is not None
    aware = workload.optimizer.precision_aware
    moments = [aware.first_moment, aware.second_moment] if aware else ["fp32", "fp32"]
    return [WIDTHS[moment] for moment in moments]


def _main_width(workload: Workload) -> int:
    """Of fp32 weights the main weights are the weights."""
    assert workload.optimizer is not None
    if workload.precision.dtype == "fp32":
        return 0
    aware, fp8 = workload.optimizer.precision_aware, workload.precision.fp8
    if aware is not None and aware.main_weights == "fp16":
        return WIDTHS["fp16"]
    # Of an fp32 main weight Transformer Engine keeps the 16 bits that its bf16 weight has not.
    in_fp8 = fp8 is not None and fp8.param_gather
    return WIDTHS["fp32" if aware is None or in_fp8 else "bf16"]


def _engine_holds_main(workload: Workload) -> bool:
    """Whether main weights of the precision-aware optimizer are Transformer Engine's.

    Of weights in FP8, under recipes other than `delayed`, Megatron-Core keeps fp32 ones itself, in
    full (OptimizerConfig.use_precision_aware_optimizer_no_fp8_or_ds_fp8).
    """
    assert workload.optimizer is not None
    aware, fp8 = workload.optimizer.precision_aware, workload.precision.fp8
    fp32 = aware is not None and aware.main_weights == "fp32"
    return not (fp32 and fp8 is not None and fp8.param_gather and fp8.recipe != "delayed")
