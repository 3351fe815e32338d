"""One optimizer step, and the forward passes of validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.data.sample import MicroBatch
from megatron_soaes.models.zigzag import positions_of_rank
from megatron_soaes.training.engine import Engine
from megatron_soaes.training.objective import Objective


@dataclass(frozen=True)
class StepResult:
    """What every rank knows after a step."""

    loss: float
    """Mean over the trained tokens of the global batch, in nats."""
    grad_norm: float
    """Global L2 norm before clipping."""
    lr: float
    """Learning rate of this step."""
    trained_tokens: int
    """Tokens of the global batch with a loss weight above 0."""
    finite: bool
    """False when loss or gradient was NaN or infinite; then no weight was changed."""
    stop_requested: bool
    """Whether any rank was asked to stop."""


def train_step(
    engine: Engine,
    objective: Objective,
    batches: Sequence[MicroBatch],
    global_batch_size: int,
    stop_here: bool,
) -> StepResult:
    """Forward, backward and update on this replica's micro-batches (collective).

    `stop_here` is this rank's wish to stop; it travels with the loss so that all ranks agree on it.
    Raises ValueError when no token of the global batch is trained.
    """
    weight, trained_tokens = global_weight(batches)
    if weight == 0:
        raise ValueError("no token of this global batch has a loss weight above 0")
    for wrapped in engine.wrapped:
        wrapped.zero_grad_buffer()
    engine.optimizer.zero_grad()
    local_loss = run_schedule(engine.wrapped, objective, batches, weight, train=True)
    lr = _learning_rate(engine)
    engine.optimizer.prepare_grads()
    grad_norm = float(engine.optimizer.get_grad_norm())
    damaged_here = float(not _gradients_finite(engine))
    loss, stops, damaged = sum_over_world([local_loss, float(stop_here), damaged_here])
    # All three figures are the same on every rank, so all ranks take the same branch.
    finite = math.isfinite(loss) and math.isfinite(grad_norm) and damaged == 0
    if finite:
        _clip(engine, grad_norm)
        engine.optimizer.step_with_ready_grads()
    engine.schedule.step(increment=global_batch_size)
    return StepResult(loss, grad_norm, lr, trained_tokens, finite, stops > 0)


def evaluation_loss(
    chunks: Sequence[GPTModel], objective: Objective, batches: Sequence[MicroBatch]
) -> tuple[float, float]:
    """Mean loss in nats over the trained tokens of all replicas' batches, and their weight.

    Collective over the world.
    """
    weight, _ = global_weight(batches)
    for chunk in chunks:
        chunk.eval()
    with torch.no_grad():
        local_loss = run_schedule(chunks, objective, batches, weight, train=False)
    for chunk in chunks:
        chunk.train()
    return sum_over_world([local_loss])[0], weight


def global_weight(batches: Sequence[MicroBatch]) -> tuple[float, int]:
    """Sum of loss weights over all replicas' micro-batches, and how many of them are above 0.

    Collective over data parallel.
    """
    weights = torch.cat([batch.loss_weights.flatten() for batch in batches]).double()
    total = torch.stack((weights.sum(), weights.gt(0).sum()))
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
    weight, tokens = total.tolist()
    return weight, round(tokens)


def sum_over_world(values: Sequence[float]) -> list[float]:
    """Element-wise sum over all ranks, fp64."""
    total = torch.tensor(values, dtype=torch.float64, device=this_device().torch_device)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total.tolist()]


def run_schedule(
    models: Sequence[GPTModel | DistributedDataParallel],
    objective: Objective,
    batches: Sequence[MicroBatch],
    weight: float,
    train: bool,
) -> float:
    """Run Megatron-Core's pipeline schedule; returns this rank's part of the mean loss.

    Only the first tensor-parallel rank of the last pipeline stage returns a part that is not 0, so
    that the sum over the world is the mean loss of the global batch.
    """
    tokens = batches[0].inputs.shape[1]
    reports: list[Tensor] = get_forward_backward_func()(
        forward_step_func=partial(_forward_step, objective=objective, weight=weight),
        data_iterator=[iter(batches) for _ in models],
        model=list(models),
        num_microbatches=len(batches),
        seq_length=tokens,
        micro_batch_size=1,
        forward_only=not train,
    )
    if parallel_state.get_tensor_model_parallel_rank() != 0:
        return 0.0
    return float(torch.stack(reports).sum(dtype=torch.float64)) if reports else 0.0


def _forward_step(
    data_iterator: Iterator[MicroBatch], model: Any, objective: Objective, weight: float
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
    batch = _on_context_rank(next(data_iterator))
    output = model(
        input_ids=batch.inputs,
        position_ids=None,
        attention_mask=None,
        packed_seq_params=batch.packed_seq_params(),
    )

    def loss_of(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        losses = objective.losses(logits, batch)
        # A position without weight may hold anything, infinity included.
        weighted = torch.where(batch.loss_weights > 0, losses * batch.loss_weights, 0.0)
        loss = weighted.sum() / weight
        return loss, torch.ones((), dtype=torch.int32, device=loss.device), loss.detach().double()

    return output, loss_of


def _on_context_rank(batch: MicroBatch) -> MicroBatch:
    """This context-parallel rank's tokens of a micro-batch; the documents stay described whole."""
    ranks = parallel_state.get_context_parallel_world_size()
    if ranks == 1:
        return batch
    rank = parallel_state.get_context_parallel_rank()
    mine = positions_of_rank(batch.cu_seqlens.tolist(), rank, ranks).to(batch.inputs.device)
    return replace(
        batch,
        inputs=batch.inputs[:, mine],
        labels=batch.labels[:, mine],
        loss_weights=batch.loss_weights[:, mine],
        answers=batch.answers.at(mine) if batch.answers else None,
    )


def _gradients_finite(engine: Engine) -> bool:
    """Whether those of this rank's gradients that the global norm leaves out are finite.

    Of a weight that every tensor-parallel rank holds, such as a norm's, the norm counts the first
    rank's gradient only; of all others a NaN shows in the norm itself.
    """
    optimizers = engine.optimizer.chained_optimizers
    counted = {g.data_ptr() for one in optimizers for g in one.get_main_grads_for_grad_norm()}
    name = "decoupled_grad" if _decoupled(engine) else "grad"
    gradients = (getattr(p, name, None) for p in engine.optimizer.get_parameters())
    rest = [one for one in gradients if one is not None and one.data_ptr() not in counted]
    return not rest or bool(torch.isfinite(torch.nn.utils.get_total_norm(rest)))


def _clip(engine: Engine, grad_norm: float) -> None:
    limit = engine.optimizer.config.clip_grad
    if limit > 0:
        parameters = engine.optimizer.get_parameters()
        clip_grad_by_total_norm_fp32(parameters, limit, grad_norm, _decoupled(engine))


def _decoupled(engine: Engine) -> bool:
    """Whether gradients of another dtype than their weights are kept beside `.grad`."""
    return bool(engine.optimizer.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8)


def _learning_rate(engine: Engine) -> float:
    return float(engine.optimizer.param_groups[0]["lr"])
