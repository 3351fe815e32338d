"""Tiny HF models with every weight random, for conversions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_soaes.recipe.schema import FamilyName

ARCHITECTURES: dict[FamilyName, tuple[type, type]] = {
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 2.0,
    "high_freq_factor": 8.0,
    "original_max_position_embeddings": 64,
}
"""None of the parameters is the one that Llama 3.1 ships with."""


@dataclass(frozen=True)
class Case:
    """A tiny model: 8 heads, hidden 64, 4 layers unless told otherwise."""

    family: FamilyName = "llama"
    tied: bool = False
    kv_heads: int = 2
    vocab_size: int = 250
    layers: int = 4
    rope: dict[str, Any] | None = None
    head_dim: int | None = None

    @property
    def name(self) -> str:
        tied = "tied" if self.tied else "untied"
        rope = "-llama3rope" if self.rope else ""
        return f"{self.family}-{tied}-kv{self.kv_heads}{rope}"


FAMILY_CASES = [
    Case(family, tied, kv_heads, vocab_size=250 if tied else 256)
    for family, tied, kv_heads in product(ARCHITECTURES, [True, False], [1, 2, 8])
]
ROPE_CASE = Case(tied=True, rope=LLAMA3_ROPE)


def make_model(
    directory: Path,
    case: Case = Case(),
    *,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    seed: int = 7,
) -> Path:
    """Write an HF directory with random norms and biases and a stand-in for a tokenizer."""
    config_class, model_class = ARCHITECTURES[case.family]
    config = config_class(
        vocab_size=case.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=case.layers,
        num_attention_heads=8,
        num_key_value_heads=case.kv_heads,
        head_dim=case.head_dim or (16 if case.family == "qwen3" else 8),
        max_position_embeddings=256,
        tie_word_embeddings=case.tied,
        rope_parameters=case.rope or {"rope_type": "default", "rope_theta": 10000.0},
    )
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.05))
    model.to(dtype).save_pretrained(directory, max_shard_size=shard_size)
    (directory / "tokenizer.json").write_text('{"model": "a tokenizer"}', encoding="utf-8")
    return directory


def tensors_of(directory: Path) -> dict[str, Tensor]:
    """All tensors of an HF directory."""
    result: dict[str, Tensor] = {}
    for file in directory.glob("*.safetensors"):
        result |= load_file(file)
    return result


def edit_weights(directory: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a directory with a single safetensors file."""
    tensors = tensors_of(directory)
    edit(tensors)
    save_file(
        {k: v.contiguous().clone() for k, v in tensors.items()}, directory / "model.safetensors"
    )


def edit_config(directory: Path, **changes: Any) -> None:
    """Change fields of config.json; None removes one."""
    file = directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | changes
    config = {name: value for name, value in config.items() if value is not None}
    file.write_text(json.dumps(config), encoding="utf-8")


def assert_same_tensors(found: Path, expected: Path) -> None:
    """Every tensor of the one is, bit for bit and with its dtype, in the other; and no more."""
    left, right = tensors_of(found), tensors_of(expected)
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        assert left[name].dtype == tensor.dtype, name
        assert torch.equal(left[name], tensor), name


@torch.no_grad()
def reference_logits(directory: Path, tokens: Tensor) -> Tensor:
    """What transformers computes, loaded the way its users load a model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    logits: Tensor = model(tokens).logits
    return logits
