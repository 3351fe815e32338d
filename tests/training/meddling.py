"""Faults put into a run from outside, to see that they are survived or noticed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_soaes.accelerator.groups import world_rank
from megatron_soaes.models import attention, zigzag
from tests.training.watched import Meddler, WatchedTrainer


def terminate_in(last: int, rank: int = 0) -> Meddler:
    """SIGTERM to this process in step `last`, on one rank only."""

    def meddle(trainer: WatchedTrainer, step: int) -> None:
        if step == last and world_rank() == rank:
            os.kill(os.getpid(), signal.SIGTERM)

    return meddle


def crash_in(last: int) -> Meddler:
    """An error before step `last`."""

    def meddle(trainer: WatchedTrainer, step: int) -> None:
        if step == last:
            raise RuntimeError("crash")

    return meddle


def spoil_activations(steps: Iterable[int], rank: int) -> Meddler:
    """NaN out of the first layer's MLP in these steps, on one rank only."""

    def hook(module: Any, inputs: Any, outputs: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        return outputs[0] * float("nan"), outputs[1]

    def spoil(trainer: WatchedTrainer) -> Any:
        return trainer.engine.chunks[0].decoder.layers[0].mlp.register_forward_hook(hook)

    return _in_steps(steps, rank, spoil)


def spoil_final_norm(steps: Iterable[int], rank: int) -> Meddler:
    """NaN in the gradient of the final norm in these steps, on one rank only.

    Tensor-parallel ranks each hold that norm, so nothing carries the NaN to the others.
    """

    def spoil(trainer: WatchedTrainer) -> Any:
        weight = trainer.engine.chunks[0].decoder.final_layernorm.weight
        return weight.register_hook(lambda gradient: gradient * float("nan"))

    return _in_steps(steps, rank, spoil)


def forget_gradients(stop: int) -> Meddler:
    """Gradients are reduced neither over replicas nor over the ranks that share a sequence."""

    def meddle(trainer: WatchedTrainer, step: int) -> None:
        finalize = partial(trainer.finalize, lambda *args, **kwargs: None)
        trainer.engine.chunks[0].config.finalize_model_grads_func = finalize
        trainer.stop.received = step == stop

    return meddle


def forget_norm_marks(stop: int) -> Meddler:
    """Norms no longer say that their gradient on one rank is a part of a sum."""

    def meddle(trainer: WatchedTrainer, step: int) -> None:
        for name, parameter in trainer.engine.chunks[0].named_parameters():
            if name.endswith("layernorm.weight"):
                parameter.sequence_parallel = False
        trainer.stop.received = step == stop

    return meddle


def batch_messages(stop: int) -> Meddler:
    """Pipeline stages exchange batched messages although their chunks are interleaved."""

    def meddle(trainer: WatchedTrainer, step: int) -> None:
        for chunk in trainer.engine.chunks:
            chunk.config.overlap_p2p_comm = False
            chunk.config.batch_p2p_comm = True
        trainer.stop.received = step == stop

    return meddle


def keep_gathered_order(stop: int) -> Meddler:
    """Keys of the other context-parallel ranks stay in the order in which they were gathered."""

    def meddle(trainer: WatchedTrainer, step: int) -> None:
        attention.gathered_order = lambda ends, ranks: torch.arange(ends[-1])
        trainer.stop.received = step == stop
        if step == stop:
            attention.gathered_order = zigzag.gathered_order

    return meddle


def _in_steps(steps: Iterable[int], rank: int, spoil: Callable[[WatchedTrainer], Any]) -> Meddler:
    wanted = set(steps)
    hooks: list[Any] = []

    def meddle(trainer: WatchedTrainer, step: int) -> None:
        while hooks:
            hooks.pop().remove()
        if step in wanted and world_rank() == rank:
            hooks.append(spoil(trainer))

    return meddle
