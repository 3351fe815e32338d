"""Settings of a stage, beside FP8, that only Transformer Engine has."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_soaes.recipe.fp8 import release
from megatron_soaes.recipe.problems import Problem
from megatron_soaes.recipe.schema import DistillStage, TrainingStage
from megatron_soaes.recipe.training_settings import Kernels, Layout

SINCE = {"optimizer.precision_aware": "2.1.0", "overlap.tensor_parallel": "2.7.0"}
"""First Transformer Engine whose FusedAdam keeps the rest of a main weight (Megatron-Core 0.16.1,
OptimizerConfig), and whose buffers are told their arithmetic by `quantization_modes`."""

LEAVE_OUT = "Leave it out, or change the other setting."

NO_USER_BUFFERS = "blockwise"
"""The FP8 recipe whose numbers user buffers do not carry (Transformer Engine 2.11,
fill_userbuffers_buffer_for_all_gather)."""


def engine_settings(stage: TrainingStage) -> Iterator[tuple[str, str]]:
    """Each setting of the stage that needs it, by its field, with its value."""
    path = f"stages.{stage.name}"
    if stage.optimizer.precision_aware is not None:
        yield f"{path}.optimizer.precision_aware", "set"
    if stage.overlap.tensor_parallel:
        yield f"{path}.overlap.tensor_parallel", "true"
    for name in Kernels.model_fields:
        if getattr(stage.kernels, name):
            yield f"{path}.kernels.{name}", "true"


def engine_versions(stage: TrainingStage, version: str) -> Iterator[Problem]:
    """Settings of the stage that this version of Transformer Engine does not know yet."""
    for field, value in engine_settings(stage):
        since = SINCE.get(field.removeprefix(f"stages.{stage.name}."))
        if since is not None and release(version) < release(since):
            rule = f"what Transformer Engine {version} has"
            yield Problem(field, value, rule, f"Install {since} or later, or leave it out.")


def engine_arithmetic(stage: TrainingStage, layout: Layout) -> Iterator[Problem]:
    """Broken rules of these settings that need no machine."""
    path = f"stages.{stage.name}"
    aware = stage.optimizer.precision_aware
    if aware is not None and stage.precision.dtype != "bf16":
        rule = "nothing with fp32 weights, which are their own main weights"
        fix = "Set precision.dtype to bf16, or leave it out."
        yield Problem(f"{path}.optimizer.precision_aware", "set", rule, fix)
    if stage.overlap.tensor_parallel:
        for rule in _against_user_buffers(stage, layout):
            yield Problem(f"{path}.overlap.tensor_parallel", "true", f"false {rule}", LEAVE_OUT)
    if stage.kernels.cross_entropy and isinstance(stage, DistillStage):
        rule = "false in a distillation, which has a loss of its own"
        yield Problem(f"{path}.kernels.cross_entropy", "true", rule, LEAVE_OUT)
    if stage.kernels.mlp_graphs:
        for rule in _against_mlp_graphs(stage, layout):
            yield Problem(f"{path}.kernels.mlp_graphs", "true", f"false {rule}", LEAVE_OUT)


def _against_user_buffers(stage: TrainingStage, layout: Layout) -> Iterator[str]:
    if not (layout.sequence_parallel and layout.tensor_parallel > 1):
        yield "without sequence_parallel over several processes: nothing is gathered"
    if layout.context_parallel > 1:
        yield "with context_parallel, whose micro-batches differ in length: buffers have one size"
    if stage.precision.dtype != "bf16":
        yield "with fp32 weights: buffers hold bf16"
    if isinstance(stage, DistillStage):
        yield "in a distillation, whose models differ in width: buffers have one size"
    if stage.precision.fp8 and stage.precision.fp8.recipe == NO_USER_BUFFERS:
        yield f"with the {NO_USER_BUFFERS} FP8 recipe, whose numbers the buffers do not carry"


def _against_mlp_graphs(stage: TrainingStage, layout: Layout) -> Iterator[str]:
    if layout.context_parallel > 1:
        yield "with context_parallel, whose micro-batches differ in length: a graph has one size"
    if stage.precision.dtype != "bf16":
        yield "with fp32 weights: Megatron-Core records graphs in bf16"
    if stage.overlap.param_gather:
        yield "with overlap.param_gather, which has to wait for weights inside the graph"
    recompute = stage.recompute
    if recompute.granularity == "full" or (
        recompute.granularity == "selective" and set(recompute.modules) != {"core_attn"}
    ):
        yield "with recompute of the MLP or of norms, which lies within the graph"
