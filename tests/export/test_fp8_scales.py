"""The arithmetic of FP8 scales: what is merged, how exact the format is, and its edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_soaes.export.fp8.scales import (
    CACHE,
    GROUPS,
    LARGEST,
    LayerScales,
    Scales,
    cache_scale,
    layer_scales,
    rounded,
    rounded_layer,
    scale_of,
    to_fp8,
)

finite = st.floats(-1e6, 1e6, width=32)
numbers = st.lists(finite, min_size=1, max_size=20).map(torch.tensor)


def layer_of(largest: dict[str, float]) -> dict[str, Tensor]:
    """A layer whose matrices have these absolute maxima, with a negative number as the largest."""
    return {
        f"{module}.weight": torch.tensor([[0.01, -largest[module]]])
        for modules in GROUPS.values()
        for module in modules
    }


LAYER = layer_of(
    {
        "self_attn.q_proj": 1.0, "self_attn.k_proj": 7.0, "self_attn.v_proj": 2.0,
        "self_attn.o_proj": 3.0, "mlp.gate_proj": 4.0, "mlp.up_proj": 5.0, "mlp.down_proj": 6.0,
    }
)  # fmt: skip
OBSERVED = {
    name: torch.tensor(float(number)) for number, name in enumerate([*GROUPS, CACHE], start=10)
}


@given(numbers)
def test_a_number_keeps_its_leading_digits(x: Tensor) -> None:
    scale = scale_of(x.abs().max())
    error = (rounded(x, scale) - x).abs()
    # Half of the last of 3 bits of mantissa, or half of the smallest subnormal number, 2^-9.
    assert (error <= torch.maximum(x.abs() / 16, scale * 2**-10) * (1 + 1e-5)).all()


@given(numbers)
def test_what_has_been_in_fp8_stays_as_it_is(x: Tensor) -> None:
    once = to_fp8(x, scale_of(x.abs().max()))
    assert torch.equal(to_fp8(once.float(), torch.ones(())).float(), once.float())
    assert torch.isfinite(once.float()).all()


def test_the_largest_number_becomes_the_largest_of_the_format() -> None:
    x = torch.tensor([-3.5, 1.0])
    scale = scale_of(x.abs().max())
    assert scale.dtype == torch.float32
    assert to_fp8(x, scale)[0] == -LARGEST
    torch.testing.assert_close(rounded(x, scale)[0], x[0])


def test_numbers_beyond_the_calibrated_maximum_are_limited() -> None:
    x = torch.tensor([1e9, -1e9])
    assert rounded(x, torch.tensor(1.0)).tolist() == [LARGEST, -LARGEST]


def test_zeros_have_a_scale_that_can_be_divided_by() -> None:
    scale = scale_of(torch.zeros(()))
    assert scale == 1.0
    assert not rounded(torch.zeros(3), scale).any()


def test_matrices_that_an_engine_joins_share_their_scales() -> None:
    found = layer_scales(LAYER, OBSERVED, (), fp8_cache=True)
    largest = {"qkv": 7.0, "o_proj": 3.0, "gate_up": 5.0, "down_proj": 6.0}
    for group, value in largest.items():
        torch.testing.assert_close(found.weights[group], torch.tensor(value / 448))
        torch.testing.assert_close(found.inputs[group], OBSERVED[group] / 448)
    scales = Scales((found, found), ())
    attention = "model.layers.1.self_attn."
    assert scales.weights[attention + "q_proj.weight"] is found.weights["qkv"]
    assert scales.weights[attention + "v_proj.weight"] is found.weights["qkv"]
    assert len(scales.weights) == len(scales.inputs) == 2 * 7
    assert list(scales.caches) == [f"model.layers.{n}.self_attn.o_proj.weight" for n in (0, 1)]


def test_a_cache_is_scaled_only_where_it_overflows() -> None:
    assert cache_scale(torch.tensor(0.5)) == 1.0
    assert cache_scale(torch.tensor(896.0)) == 2.0


@pytest.mark.parametrize("fp8_cache", [True, False])
def test_what_is_excluded_has_no_scale(fp8_cache: bool) -> None:
    found = layer_scales(LAYER, OBSERVED, ("qkv", "down_proj"), fp8_cache)
    assert found.weights.keys() == found.inputs.keys() == {"o_proj", "gate_up"}
    assert (found.cache is not None) == fp8_cache
    kept = rounded_layer(LAYER, found)
    assert torch.equal(kept["mlp.down_proj.weight"], LAYER["mlp.down_proj.weight"])
    assert not torch.equal(kept["mlp.up_proj.weight"], LAYER["mlp.up_proj.weight"])


def test_a_layer_without_scales_is_a_layer_without_fp8() -> None:
    scales = Scales((LayerScales({}, {}, None),), tuple(GROUPS))
    assert not scales.weights
    assert not scales.caches
