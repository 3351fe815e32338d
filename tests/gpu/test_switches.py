"""Each switch of the engine trains like bf16 without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.accelerator.machine import read_machine
from tests.gpu.curve import train

pytestmark = pytest.mark.usefixtures("transformer_engine")

STEPS = 60
DRIFT = 0.01
"""Largest relative difference of the mean loss over the last 10 of 60 steps."""
IN_BF16 = {"main_gradients": "bf16", "first_moment": "bf16", "second_moment": "bf16"}
SWITCHES: dict[str, dict[str, dict[str, Any]]] = {
    "swiglu": {"kernels": {"swiglu": True}},
    "rope": {"kernels": {"rope": True}},
    "cross_entropy": {"kernels": {"cross_entropy": True}},
    "gradient_accumulation": {"kernels": {"gradient_accumulation": True}},
    "precision_aware": {"optimizer": {"precision_aware": {}}},
    "precision_aware in bf16": {"optimizer": {"precision_aware": IN_BF16}},
    # Last: a recording that breaks off leaves Transformer Engine unusable in its process.
    "mlp_graphs": {"kernels": {"mlp_graphs": True}},
    "all": {"kernels": {"swiglu": True, "rope": True, "cross_entropy": True, "mlp_graphs": True}},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_it_trains_like_bf16(
    trained_model: tuple[Path, Path], bf16_curve: list[float], switch: str
) -> None:
    if switch == "gradient_accumulation" and read_machine().apex != "nvidia":
        pytest.skip("NVIDIA's apex is not installed")
    losses, _ = train(*trained_model, {"dtype": "bf16"}, STEPS, **SWITCHES[switch])
    assert losses[0] == pytest.approx(bf16_curve[0], rel=DRIFT)
    assert sum(losses[-10:]) == pytest.approx(sum(bf16_curve[STEPS - 10 : STEPS]), rel=DRIFT)
