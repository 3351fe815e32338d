"""From absolute maxima to FP8 scales, and numbers rounded to FP8. Pure functions.

A number is stored as float8_e4m3fn (4 bits of exponent, 3 of mantissa, largest 448; Micikevicius et
al. 2209.05433) and stands for that times a scale. Scales are fp32 of shape [], one for each tensor:
absolute maximum / 448, so that the largest number becomes the largest of the format.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}
"""The matrices of a layer, by what they are multiplied with. An engine joins those of a group into
one product, which has one scale for its input and one for its weight."""
CACHE = "cache"
"""Name under which the keys and values of a layer are observed."""


@dataclass(frozen=True)
class LayerScales:
    """The scales of one layer, by group; groups that are left in the model's dtype are missing."""

    weights: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    cache: Tensor | None
    """Of the cached keys and values; None where the cache keeps the model's dtype."""

    def cpu(self) -> LayerScales:
        """The same in the CPU's memory."""
        weights, inputs = (
            {group: scale.cpu() for group, scale in scales.items()}
            for scales in (self.weights, self.inputs)
        )
        return LayerScales(weights, inputs, None if self.cache is None else self.cache.cpu())


@dataclass(frozen=True)
class Scales:
    """The scales of a model."""

    layers: tuple[LayerScales, ...]
    excluded: tuple[str, ...]
    """Groups that are left in the model's dtype in every layer."""

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """By the HF name of each matrix in FP8."""
        return self._by_matrix([layer.weights for layer in self.layers])

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Of what each matrix in FP8 is multiplied with, by the matrix's HF name."""
        return self._by_matrix([layer.inputs for layer in self.layers])

    @cached_property
    def caches(self) -> dict[str, Tensor]:
        """Of each layer's cached keys and values, by the HF name of the matrix after attention."""
        return {
            f"model.layers.{index}.self_attn.o_proj.weight": layer.cache
            for index, layer in enumerate(self.layers)
            if layer.cache is not None
        }

    def _by_matrix(self, layers: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {
            f"model.layers.{index}.{module}.weight": layers[index][group]
            for index, layer in enumerate(self.layers)
            for group in layer.weights
            for module in GROUPS[group]
        }


def layer_scales(
    layer: Mapping[str, Tensor],
    observed: Mapping[str, Tensor],
    excluded: Collection[str],
    fp8_cache: bool,
) -> LayerScales:
    """The scales of a layer from its tensors and from the maxima of what was multiplied with them.

    `layer`: by HF name without `model.layers.N.`. `observed`: absolute maxima, shape [], of the
    input of each group and of the keys and values (`CACHE`).
    """
    groups = [group for group in GROUPS if group not in excluded]
    largest = {
        group: torch.stack([layer[m + ".weight"].abs().max() for m in GROUPS[group]]).max()
        for group in groups
    }
    return LayerScales(
        weights={group: scale_of(largest[group]) for group in groups},
        inputs={group: scale_of(observed[group]) for group in groups},
        cache=cache_scale(observed[CACHE]) if fp8_cache else None,
    )


def scale_of(largest: Tensor) -> Tensor:
    """Absolute maximum / 448, fp32; 1 where the maximum is 0."""
    scale = largest.float() / LARGEST
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def cache_scale(largest: Tensor) -> Tensor:
    """The scale of cached keys and values: 1, or what a maximum above 448 needs.

    The format is as exact around 1 as around 448. A scale below 1 would gain nothing but numbers
    under 1/64, and lose the room above the maxima that calibration happened to see. ModelOpt
    exports to TensorRT-LLM alike.
    """
    return scale_of(largest).clamp_min(1.0)


def to_fp8(numbers: Tensor, scale: Tensor) -> Tensor:
    """float8_e4m3fn nearest to numbers / scale; what is too large becomes the largest number."""
    return (numbers.float() / scale).clamp(-LARGEST, LARGEST).to(FP8)


def rounded(numbers: Tensor, scale: Tensor) -> Tensor:
    """What `numbers` are after a time in FP8, fp32."""
    return to_fp8(numbers, scale).float() * scale


def rounded_layer(layer: Mapping[str, Tensor], scales: LayerScales) -> dict[str, Tensor]:
    """A layer whose matrices have been in FP8, fp32; the other tensors as they are."""
    matrices = {m + ".weight": scales.weights[g] for g in scales.weights for m in GROUPS[g]}
    return {
        name: rounded(tensor, matrices[name]) if name in matrices else tensor
        for name, tensor in layer.items()
    }
