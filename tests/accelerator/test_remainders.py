"""A main weight survives as a bf16 weight and 16 bits, and goes whole into a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.accelerator.remainders import parts, whole

MAIN = torch.cat(
    [
        torch.randn(10_000, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3e38, 1 + 2**-8, 1 + 3 * 2**-8]),
    ]
)
"""Zeros, numbers below the smallest normal one and ties of the rounding among them."""


def test_weight_and_rest_make_the_main_weight_again() -> None:
    weight, rest = parts(MAIN)
    assert (weight.dtype, rest.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(whole(weight, rest).view(torch.int32), MAIN.view(torch.int32))


def test_the_weight_is_the_main_weight_rounded() -> None:
    weight, _ = parts(MAIN)
    assert torch.equal((weight.float() - MAIN).abs(), (MAIN.bfloat16().float() - MAIN).abs())


class FusedAdam:
    """What Megatron-Core sees of Transformer Engine's optimizer that keeps the rest alone."""

    store_param_remainders = True

    def __init__(self, weight: Tensor, rest: Tensor) -> None:
        self.param_groups = [{"params": [weight]}]
        self.state = {weight: {"master_param": rest, "exp_avg": torch.ones(len(rest))}}

    def get_unscaled_state(self, weight: Tensor, name: str) -> Tensor:
        return self.state[weight][name]

    def set_scaled_state(self, weight: Tensor, name: str, value: Tensor) -> None:
        assert name != "master_param" or value.dtype == torch.int16
        self.state[weight][name].copy_(value)


@pytest.fixture
def optimizer() -> Any:
    this_device()
    weight, rest = parts(MAIN)
    return SimpleNamespace(
        config=SimpleNamespace(use_precision_aware_optimizer_no_fp8_or_ds_fp8=True),
        model_param_group_index_map={weight: (0, 0)},
        optimizer=FusedAdam(weight, rest),
    )


def test_a_checkpoint_holds_whole_main_weights(optimizer: Any) -> None:
    weight = optimizer.optimizer.param_groups[0]["params"][0]
    found = DistributedOptimizer._get_main_param_and_optimizer_states(optimizer, weight)
    assert torch.equal(found["param"], MAIN)
    assert torch.equal(found["exp_avg"], torch.ones(len(MAIN)))


def test_and_comes_back_from_any_run(optimizer: Any) -> None:
    weight = optimizer.optimizer.param_groups[0]["params"][0]
    saved = {"param": MAIN.flip(0), "exp_avg": torch.zeros(len(MAIN))}
    DistributedOptimizer._set_main_param_and_optimizer_states(optimizer, weight, saved)
    state = optimizer.optimizer.state[weight]
    assert torch.equal(whole(weight, state["master_param"]), MAIN.flip(0))
    assert not state["exp_avg"].any()
