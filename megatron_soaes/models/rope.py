"""Inverse frequencies of rotary position embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_soaes.recipe.shapes import ModelShape


def rope_inverse_frequencies(shape: ModelShape) -> Tensor:
    """Shape [head_dim / 2], fp32: theta^(-2i/d) (Su et al. 2104.09864), rescaled as Llama 3.1 does.

    Llama 3.1 divides frequencies with wavelengths above `original / low_freq_factor` by `factor`,
    keeps those below `original / high_freq_factor` and interpolates between the two (model card and
    reference code of Llama 3.1). Megatron-Core's own scaling fixes all but `factor`.
    """
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    frequencies = 1.0 / (shape.rope_theta**exponents)
    scaling = shape.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    cycles = scaling.original_max_position / wavelengths
    smooth = (cycles - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
