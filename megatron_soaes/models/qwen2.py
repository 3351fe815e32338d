"""Qwen2 and Qwen2.5: Llama's decoder with biases on queries, keys and values."""

from __future__ import annotations

from megatron_soaes.models import llama
from megatron_soaes.models.weights import QKV, Weight

WEIGHTS = (
    *llama.WEIGHTS,
    Weight(
        llama.ATTENTION + "linear_qkv.bias",
        {
            llama.HF_LAYER + "self_attn.q_proj.bias": ("query_width",),
            llama.HF_LAYER + "self_attn.k_proj.bias": ("kv_width",),
            llama.HF_LAYER + "self_attn.v_proj.bias": ("kv_width",),
        },
        QKV,
    ),
)
