"""Small models whose every matrix side suits FP8, and text that a model can learn in 30 steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.data.sample import MicroBatch, collate, pretraining_sample
from megatron_soaes.models.build import BuildOptions
from megatron_soaes.recipe.schema import FamilyName
from megatron_soaes.recipe.shapes import read_shape
from megatron_soaes.training.engine import load_model
from tests.checkpoint.tiny import ARCHITECTURES

VOCABULARY = 1000
"""Not a multiple of the padding, so that padded rows take part."""
MULTIPLE = 128
EOD = 0
FAMILIES: tuple[FamilyName, ...] = ("qwen2", "qwen3", "llama")
DOCUMENTS = (100, 37, 119)
"""Lengths of the packed documents of a parity check; together 256."""


def make_model(directory: Path, family: FamilyName) -> Path:
    """An HF directory: 4 layers, hidden 256, 4 heads of 64 and 2 KV heads, FFN 512, tied Qwen2.

    Sides are multiples of 128, which every FP8 recipe takes; heads of 64 have fused attention.
    """
    config_class, model_class = ARCHITECTURES[family]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=family == "qwen2",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    torch.manual_seed(7)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return directory


def documents(seed: int, lengths: Sequence[int]) -> list[Tensor]:
    """Random token ids, int64, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]


@torch.no_grad()
def packed_logits(checkpoint: Path, hf_dir: Path, dtype: torch.dtype, seed: int = 3) -> Tensor:
    """Logits [tokens, vocabulary] of DOCUMENTS packed into one sequence, fp32 on the CPU.

    The model is loaded for training, in `dtype`; groups of an unsharded model must be active. In
    fp32 it has the local layers: Transformer Engine rounds fp32 products to TF32.
    """
    shape = read_shape(hf_dir / "config.json")
    rows, exact = shape.padded_vocab_size(MULTIPLE), dtype == torch.float32
    options = BuildOptions(dtype, rows, local_layers=exact)
    model = load_model(shape, options, checkpoint)[0].eval()
    tokens = torch.cat(documents(seed, DOCUMENTS))
    device = this_device().torch_device
    bounds = np.cumsum([0, *DOCUMENTS])
    batch = MicroBatch(
        inputs=tokens[None].to(device),
        labels=tokens[None].to(device),
        loss_weights=torch.ones(1, len(tokens), device=device),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32, device=device),
        longest=max(DOCUMENTS),
        sources=(0,),
        places=torch.arange(len(tokens), device=device),
    )
    logits: Tensor = model(batch.inputs, None, None, packed_seq_params=batch.packed_seq_params())
    return logits[0, :, : shape.vocab_size].float().cpu()


@torch.no_grad()
def separate_logits(hf_dir: Path, dtype: torch.dtype, seed: int = 3) -> Tensor:
    """The same from `transformers` (SDPA), each document on its own."""
    device = this_device().torch_device
    model = transformers.AutoModelForCausalLM.from_pretrained(hf_dir, dtype=dtype).to(device).eval()
    parts = [
        model(document[None].to(device), use_cache=False).logits[0]
        for document in documents(seed, DOCUMENTS)
    ]
    return torch.cat(parts).float().cpu()


def rms(difference: Tensor) -> float:
    """Root of the mean square."""
    return float(difference.double().square().mean().sqrt())


def learnable_batch(step: int, samples: int, length: int) -> list[MicroBatch]:
    """`samples` micro-batches of one window each, on the device; a function of `step` alone.

    Within a document the next token mostly follows from the current one by a fixed rule, which a
    small model begins to learn at once; documents of about 60 tokens end with EOD.
    """
    generator = np.random.default_rng(step)
    device = this_device().torch_device
    batches = []
    for _ in range(samples):
        tokens = generator.integers(1, 64, length + 1)
        follows = generator.random(length + 1) < 0.9
        ends = generator.random(length + 1) < 1 / 60
        for i in range(1, length + 1):
            if ends[i]:
                tokens[i] = EOD
            elif follows[i]:
                tokens[i] = tokens[i - 1] * 5 % 64 + 1
        batches.append(collate([pretraining_sample(tokens, EOD, 0)], device))
    return batches
