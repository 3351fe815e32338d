"""FP8 trains like bf16, and is really FP8: Megatron-Core falls back to bf16 without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.accelerator.machine import read_machine
from tests.gpu.curve import train

pytestmark = pytest.mark.usefixtures("transformer_engine")

FP8_DRIFT = 0.01
"""Largest relative difference to bf16 of the mean loss over the last 10 of 200 steps."""
KIND = {
    "delayed": "delayed",
    "tensorwise": "float8_current_scaling",
    "blockwise": "float8_block_scaling",
}
"""The question that Transformer Engine's recipe object answers with True."""


@pytest.mark.parametrize("recipe", KIND)
def test_fp8_agrees_with_bf16_and_is_active(
    trained_model: tuple[Path, Path], bf16_curve: list[float], recipe: str
) -> None:
    machine = read_machine()
    if recipe not in machine.fp8_recipes:
        pytest.skip(f"{machine.gpu_name} cannot run the {recipe} recipe")
    precision = {"dtype": "bf16", "fp8": {"recipe": recipe}}
    losses, model = train(*trained_model, precision)
    for layer in model.decoder.layers:
        for linear in (
            layer.self_attention.linear_qkv,
            layer.self_attention.linear_proj,
            layer.mlp.linear_fc1,
            layer.mlp.linear_fc2,
        ):
            assert_ran_in_fp8(linear, recipe)
    assert losses != bf16_curve
    assert sum(losses[-10:]) == pytest.approx(sum(bf16_curve[-10:]), rel=FP8_DRIFT)


def assert_ran_in_fp8(linear: Any, recipe: str) -> None:
    """The module's last forward pass was in FP8 of this kind, and it has a state to save for it."""
    assert linear.fp8
    assert getattr(linear.fp8_meta["recipe"], KIND[recipe])()
    assert linear.get_extra_state().numel() > 0
