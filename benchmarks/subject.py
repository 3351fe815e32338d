"""What is measured: a model shape with random weights, and synthetic tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megatron_soaes.recipe.shapes import ModelShape


@dataclass(frozen=True)
class Subject:
    """One size of the same measurement."""

    name: str
    shape: ModelShape
    sequence_length: int
    micro_batch_size: int
    micro_batches: int
    """Of one optimizer step."""
    warm_up: int
    """Steps before the measured ones."""
    steps: int
    precision_aware: bool = False
    """Ours: gradients and first moments in bf16 (Transformer Engine's FusedAdam)."""
    fewer_layers: int | None = None
    """Layers of the same width that are measured where the whole model does not fit."""

    def smaller(self) -> Subject:
        """The same with fewer layers."""
        assert self.fewer_layers is not None
        name = f"{self.name}, {self.fewer_layers} of {self.shape.layers} layers"
        return replace(self, name=name, shape=replace(self.shape, layers=self.fewer_layers))

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.micro_batches * self.micro_batch_size * self.sequence_length

    def tokens(self, step: int, device: torch.device) -> Tensor:
        """[micro batches, micro batch, sequence + 1] int64 ids on `device`, a function of `step`.

        Low ids are more frequent, so that a model has something to learn.
        """
        generator = torch.Generator().manual_seed(step)
        size = (self.micro_batches, self.micro_batch_size, self.sequence_length + 1)
        tokens = torch.rand(size, generator=generator).pow(4) * self.shape.vocab_size
        return tokens.long().to(device)


def qwen2(vocab_size: int, **sizes: int | float) -> ModelShape:
    """A Qwen2 shape with tied embeddings: layers, hidden, heads, kv_heads, ffn and what differs."""
    fields: dict[str, Any] = {
        "family": "qwen2",
        "vocab_size": vocab_size,
        "head_dim": sizes["hidden"] // sizes["heads"],
        "max_position": 4096,
        "tied_embeddings": True,
        "qkv_bias": True,
        "qk_norm": False,
        "norm_eps": 1e-6,
        "rope_theta": 1e4,
        "rope_scaling": None,
    }
    return ModelShape(**(fields | sizes))


QWEN25_1_5B = qwen2(
    151_936, layers=28, hidden=1536, heads=12, kv_heads=2, ffn=8960,
    max_position=32768, rope_theta=1e6,
)  # fmt: skip
"""Every side is a multiple of 128, so all FP8 recipes run on the whole model."""
QWEN25_7B = qwen2(
    152_064, layers=28, hidden=3584, heads=28, kv_heads=4, ffn=18944,
    max_position=32768, rope_theta=1e6, tied_embeddings=False,
)  # fmt: skip
SMOKE = qwen2(512, layers=2, hidden=128, heads=2, kv_heads=1, ffn=256)
QWEN_20M = qwen2(16_384, layers=8, hidden=384, heads=6, kv_heads=2, ffn=1024)
QWEN_50M = qwen2(16_384, layers=10, hidden=576, heads=9, kv_heads=3, ffn=1536)

SEVEN_B, SEVEN_B_LONG = (
    Subject(
        f"Qwen2.5-7B, {length} tokens", QWEN25_7B, length, 1, 16384 // length,
        warm_up=2, steps=4, precision_aware=True, fewer_layers=14,
    )
    for length in (4096, 8192)
)  # fmt: skip
SMALL, SMALL_LONG = (
    Subject(
        f"Qwen2.5-1.5B, {length} tokens", QWEN25_1_5B, length, 8192 // length, 4,
        warm_up=2, steps=6,
    )
    for length in (4096, 8192)
)  # fmt: skip
TINY = Subject("tiny Qwen2 (smoke run)", SMOKE, 256, 1, 2, warm_up=1, steps=3)
ON_CPU = (
    Subject("20M", QWEN_20M, 512, 2, 1, warm_up=1, steps=6),
    Subject("50M", QWEN_50M, 512, 2, 1, warm_up=1, steps=6),
)
