"""Main weights of which only the bits that their bf16 weights lack are kept, in checkpoints."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


def whole(weight: Tensor, rest: Tensor) -> Tensor:
    """fp32 main weights of bf16 weights and int16 `rest`, the lower half of their bits.

    A weight is its main weight rounded: up by one in the last place where the rest begins with 1
    (Transformer Engine 2.11, AdamFunctorMasterParamRemainder).
    """
    upper = weight.view(torch.int16).int() - (rest < 0).int()
    return ((upper << 16) | (rest.int() & 0xFFFF)).view(torch.float32)


def parts(main: Tensor) -> tuple[Tensor, Tensor]:
    """The bf16 weights and the int16 rest of fp32 main weights."""
    bits = main.view(torch.int32)
    rest = ((bits & 0xFFFF) ^ 0x8000) - 0x8000
    upper = (bits >> 16) + (rest < 0).int()
    return upper.to(torch.int16).view(torch.bfloat16), rest.to(torch.int16)


@functools.cache
def install() -> None:
    """Let Megatron-Core save and load whole main weights where Transformer Engine keeps the rest.

    0.16.1 writes the rest's bits into the checkpoint as if they were fp32 weights, which any other
    run would take them for, and fails when it reads them back (NVIDIA/Megatron-LM#4222).
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    collect = DistributedOptimizer._get_main_param_and_optimizer_states
    fill = DistributedOptimizer._set_main_param_and_optimizer_states

    def collect_whole(self: Any, model_param: Tensor) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = collect(self, model_param)
        if tensors["param"].dtype == torch.int16:
            tensors["param"] = whole(_share(self, model_param), tensors["param"])
        return tensors

    def fill_parts(self: Any, model_param: Tensor, tensors: dict[str, Tensor]) -> None:
        if getattr(self.optimizer, "store_param_remainders", False):
            share = _share(self, model_param)
            weight, rest = parts(tensors["param"].to(share.device))
            # As Transformer Engine rounds, which differs from torch halfway between two weights.
            share.copy_(weight)
            tensors = tensors | {"param": rest}
        fill(self, model_param, tensors)

    DistributedOptimizer._get_main_param_and_optimizer_states = collect_whole
    DistributedOptimizer._set_main_param_and_optimizer_states = fill_parts


def _share(optimizer: Any, model_param: Tensor) -> Tensor:
    """The part of a bf16 weight that this rank updates."""
    group, place = optimizer.model_param_group_index_map[model_param]
    share: Tensor = optimizer.optimizer.param_groups[group]["params"][place]
    return share
