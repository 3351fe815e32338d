"""What is measured: a model shape with random weights, and synthetic tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_soaes.accelerator.device import this_device
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

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.micro_batches * self.micro_batch_size * self.sequence_length

    def tokens(self, step: int) -> Tensor:
        """[micro batches, micro batch, sequence + 1] int64 ids on the device, a function of `step`.

        Low ids are more frequent, so that a model has something to learn.
        """
        generator = torch.Generator().manual_seed(step)
        size = (self.micro_batches, self.micro_batch_size, self.sequence_length + 1)
        tokens = torch.rand(size, generator=generator).pow(4) * self.shape.vocab_size
        return tokens.long().to(this_device().torch_device)


QWEN25_1_5B = ModelShape(
    family="qwen2",
    layers=28,
    hidden=1536,
    heads=12,
    kv_heads=2,
    head_dim=128,
    ffn=8960,
    vocab_size=151936,
    max_position=32768,
    tied_embeddings=True,
    qkv_bias=True,
    qk_norm=False,
    norm_eps=1e-6,
    rope_theta=1e6,
    rope_scaling=None,
)
"""Every side is a multiple of 128, so all FP8 recipes run on the whole model."""

SMOKE_SHAPE = ModelShape(
    family="qwen2",
    layers=2,
    hidden=128,
    heads=2,
    kv_heads=1,
    head_dim=64,
    ffn=256,
    vocab_size=512,
    max_position=256,
    tied_embeddings=True,
    qkv_bias=True,
    qk_norm=False,
    norm_eps=1e-6,
    rope_theta=1e4,
    rope_scaling=None,
)

FULL = Subject("Qwen2.5-1.5B", QWEN25_1_5B, 4096, 2, 4, warm_up=3, steps=10)
TINY = Subject("tiny Qwen2 (smoke run)", SMOKE_SHAPE, 256, 1, 2, warm_up=1, steps=3)
