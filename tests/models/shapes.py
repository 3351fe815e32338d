"""A small shape for tests that need no weights."""

from __future__ import annotations

from megatron_soaes.recipe.shapes import ModelShape

SHAPE = ModelShape(
    family="llama",
    layers=3,
    hidden=4,
    heads=4,
    kv_heads=2,
    head_dim=2,
    ffn=6,
    vocab_size=5,
    max_position=32,
    tied_embeddings=False,
    qkv_bias=False,
    qk_norm=False,
    norm_eps=1e-6,
    rope_theta=10000.0,
    rope_scaling=None,
)
