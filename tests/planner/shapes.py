"""Published shapes, and tiny ones that can be built and run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout, Optimizer, Precision

QWEN2_7B = ModelShape(
    family="qwen2",
    layers=28,
    hidden=3584,
    heads=28,
    kv_heads=4,
    head_dim=128,
    ffn=18944,
    vocab_size=152064,
    max_position=32768,
    tied_embeddings=False,
    qkv_bias=True,
    qk_norm=False,
    norm_eps=1e-6,
    rope_theta=1e6,
    rope_scaling=None,
)
QWEN2_72B = replace(QWEN2_7B, layers=80, hidden=8192, heads=64, kv_heads=8, ffn=29568)
QWEN2_HALF_B = replace(
    QWEN2_7B,
    layers=24,
    hidden=896,
    heads=14,
    kv_heads=2,
    head_dim=64,
    ffn=4864,
    vocab_size=151936,
    tied_embeddings=True,
)
QWEN3_8B = replace(
    QWEN2_7B,
    family="qwen3",
    layers=36,
    hidden=4096,
    heads=32,
    kv_heads=8,
    ffn=12288,
    vocab_size=151936,
    qkv_bias=False,
    qk_norm=True,
)
QWEN3_32B = replace(QWEN3_8B, layers=64, hidden=5120, heads=64, ffn=25600)
LLAMA3_8B = replace(
    QWEN2_7B,
    family="llama",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    ffn=14336,
    vocab_size=128256,
    qkv_bias=False,
)
LLAMA3_70B = replace(LLAMA3_8B, layers=80, hidden=8192, heads=64, ffn=28672)

TINY = replace(
    QWEN2_7B,
    layers=4,
    hidden=64,
    heads=8,
    kv_heads=2,
    head_dim=16,
    ffn=96,
    vocab_size=256,
    max_position=256,
)
UNPADDED = replace(TINY, layers=3)
"""Its weights fill Megatron-Core's buffers, whose sizes are multiples of 128."""
TINY_WITH_HEAD_NORMS = replace(TINY, family="qwen3", qkv_bias=False, qk_norm=True)


def workload(shape: ModelShape, layout: Layout | None = None, **changes: Any) -> Workload:
    """Training on micro-batches of one sample; `changes` replace fields."""
    layout = layout or Layout()
    wanted: dict[str, Any] = {
        "vocab_size": shape.padded_vocab_size(128),
        "sequence_length": 32,
        "micro_batch_size": 1,
        "global_batch_size": 4 * layout.data_parallel,
        "precision": Precision(dtype="bf16"),
        "optimizer": Optimizer(),
    }
    return Workload(shape=shape, layout=layout, **(wanted | changes))


FP32, BF16 = Precision(dtype="fp32"), Precision(dtype="bf16")
MODELS = {
    "qwen2": (TINY, BF16),
    "qwen3": (TINY_WITH_HEAD_NORMS, FP32),
    "one-kv-head": (replace(TINY, kv_heads=1), FP32),
}
"""Tiny models with the arithmetic in which each is run."""
