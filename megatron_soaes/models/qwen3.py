"""Qwen3 (dense): Llama's decoder with a norm on each query and key head."""

from __future__ import annotations

from megatron_soaes.models import llama
from megatron_soaes.models.weights import DIRECT, Weight

WEIGHTS = (
    *llama.WEIGHTS,
    Weight(
        llama.ATTENTION + "q_layernorm.weight",
        {llama.HF_LAYER + "self_attn.q_norm.weight": ("head_dim",)},
        DIRECT,
    ),
    Weight(
        llama.ATTENTION + "k_layernorm.weight",
        {llama.HF_LAYER + "self_attn.k_norm.weight": ("head_dim",)},
        DIRECT,
    ),
)
