"""Everything one rank needs to train: model chunks, gradients, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_soaes.accelerator.groups import model_parallel
from megatron_soaes.checkpoint import directory
from megatron_soaes.checkpoint.distributed import load_weights
from megatron_soaes.models.build import BuildOptions, build_model, dtype_named
from megatron_soaes.recipe.schema import ModelSource, TrainingStage
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import (
    FP8,
    Kernels,
    Layout,
    Optimizer,
    Overlap,
    Precision,
    Recompute,
)

STATE_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.uint8,
}
"""What Megatron-Core is told for each name; FP8 is stored as bytes."""


@dataclass
class Engine:
    """One rank's part of a model in training."""

    shape: ModelShape
    chunks: list[GPTModel]
    """Bare modules, one a virtual pipeline stage."""
    wrapped: list[DistributedDataParallel]
    """The same in Megatron-Core's gradient buffers."""
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Between steps: all weights are up to date on every rank for the block (collective).

        While weights are gathered during the forward pass, a rank's copy is stale until its next
        pass, and that pass must be a training step's.
        """
        gathered_late = [one for one in self.wrapped if one.ddp_config.overlap_param_gather]
        for one in gathered_late:
            one.disable_forward_pre_hook()
        yield
        for one in gathered_late:
            one.enable_forward_pre_hook()


def build_options(
    shape: ModelShape,
    source: ModelSource,
    layout: Layout,
    precision: Precision,
    *,
    recompute: Recompute | None = None,
    kernels: Kernels | None = None,
    overlap: Overlap | None = None,
) -> BuildOptions:
    """How a recipe's model is built for one stage."""
    return BuildOptions(
        dtype=dtype_named(precision.dtype),
        padded_vocab_size=shape.padded_vocab_size(source.vocab_size_multiple),
        layout=layout,
        recompute=recompute or Recompute(),
        kernels=kernels or Kernels(),
        overlap=overlap or Overlap(),
        fp8=precision.fp8,
    )


def build_chunks(shape: ModelShape, options: BuildOptions) -> list[GPTModel]:
    """The model chunks of this rank, one a virtual pipeline stage, without weights."""
    virtual = options.layout.virtual_pipeline
    if virtual == 1:
        return [build_model(shape, options)]
    return [build_model(shape, options, stage) for stage in range(virtual)]


def load_model(
    shape: ModelShape, options: BuildOptions, checkpoint: Path, iteration: int | None = None
) -> list[GPTModel]:
    """The model chunks of this rank with the weights of a checkpoint, by default the newest."""
    chunks = build_chunks(shape, options)
    load_weights(checkpoint, directory.require_iteration(checkpoint, iteration), chunks)
    return chunks


@contextmanager
def layout_groups(layout: Layout) -> Iterator[None]:
    """Megatron-Core's process groups of a layout, for the block (collective)."""
    with model_parallel(
        layout.tensor_parallel,
        layout.pipeline_parallel,
        layout.virtual_pipeline,
        layout.context_parallel,
    ):
        yield


def build_engine(
    shape: ModelShape, chunks: list[GPTModel], stage: TrainingStage, steps: int
) -> Engine:
    """Wrap loaded chunks for `steps` of training as the stage says."""
    bf16 = stage.precision.dtype == "bf16"
    aware, fp8 = stage.optimizer.precision_aware, stage.precision.fp8
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=aware is None or aware.main_gradients == "fp32",
        fp8_param_gather=fp8 is not None and fp8.param_gather,
        use_distributed_optimizer=True,
        overlap_grad_reduce=stage.overlap.grad_reduce,
        overlap_param_gather=stage.overlap.param_gather,
    )
    wrapped = [
        DistributedDataParallel(chunk.config, ddp, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    wanted = stage.optimizer
    for chunk in chunks:
        chunk.config.finalize_model_grads_func = _finalize_gradients
        if stage.overlap.grad_reduce:
            # Only the last micro-batch's gradients may start the reduction.
            no_sync = [one.no_sync for one in wrapped]
            chunk.config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=wanted.lr,
            min_lr=wanted.min_lr,
            weight_decay=wanted.weight_decay,
            adam_beta1=wanted.beta1,
            adam_beta2=wanted.beta2,
            adam_eps=wanted.eps,
            clip_grad=wanted.clip_grad,
            bf16=bf16,
            params_dtype=dtype_named(stage.precision.dtype),
            use_distributed_optimizer=True,
            overlap_param_gather=stage.overlap.param_gather,
            **state_settings(wanted, fp8),
        ),
        wrapped,
    )
    return Engine(shape, chunks, wrapped, optimizer, _build_schedule(stage, steps, optimizer))


def state_settings(optimizer: Optimizer, fp8: FP8 | None) -> dict[str, Any]:
    """Megatron-Core's names for what the optimizer keeps; none where all of it is fp32."""
    settings: dict[str, Any] = {}
    # Told of a recipe, Megatron-Core keeps main weights and gradients of its own, in fp32: weights
    # that are in FP8 themselves need that, bf16 ones do not.
    in_fp8 = fp8.recipe if fp8 is not None and fp8.param_gather else None
    if in_fp8 is not None:
        settings["fp8_recipe"] = in_fp8
    aware = optimizer.precision_aware
    if aware is None:
        return settings
    return {
        **settings,
        "use_precision_aware_optimizer": True,
        "main_params_dtype": STATE_DTYPES[aware.main_weights],
        "main_grads_dtype": STATE_DTYPES[aware.main_gradients],
        "exp_avg_dtype": STATE_DTYPES[aware.first_moment],
        "exp_avg_sq_dtype": STATE_DTYPES[aware.second_moment],
        # An fp32 main weight is its bf16 weight and 16 bits more. Of fp16 ones is no rest, and
        # what updates weights in FP8 takes them whole (FusedAdam).
        "store_param_remainders": aware.main_weights == "fp32" and in_fp8 is None,
    }


def _finalize_gradients(
    model: list[DistributedDataParallel], num_tokens: object = None, **kwargs: object
) -> None:
    """Reduce gradients over replicas, sequence-parallel norms and tied embeddings.

    The loss was already divided by the global weight of trained tokens, so the core's own division
    by a token count (integers only, which loss weights are not) is left out.
    """
    finalize_model_grads(model, None, **kwargs)


def _build_schedule(
    stage: TrainingStage, steps: int, optimizer: MegatronOptimizer
) -> OptimizerParamScheduler:
    """Learning rate over consumed samples, in the units and with the formulas of Megatron-Core."""
    batch = stage.global_batch_size
    schedule = stage.schedule
    samples = steps * batch
    decay_steps = schedule.decay_steps or max(1, steps // 10)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=schedule.warmup_from_lr,
        max_lr=stage.optimizer.lr,
        min_lr=stage.optimizer.min_lr,
        lr_warmup_steps=schedule.warmup_steps * batch,
        lr_decay_steps=samples,
        lr_decay_style="WSD" if schedule.shape == "wsd" else schedule.shape,
        start_wd=stage.optimizer.weight_decay,
        end_wd=stage.optimizer.weight_decay,
        wd_incr_steps=samples,
        wd_incr_style="constant",
        wsd_decay_steps=decay_steps * batch if schedule.shape == "wsd" else None,
        lr_wsd_decay_style=schedule.decay_shape if schedule.shape == "wsd" else None,
        # A resumed run takes its position from the checkpoint and its numbers from the recipe.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
