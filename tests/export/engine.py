"""What an engine computes from rank files, as plainly as it can be written, in fp32.

Written from the meaning of TensorRT-LLM's layers: each tensor-parallel rank computes with its own
tensors, sums replace its all-reduces. Nothing here knows the exporter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

Ranks = Sequence[Mapping[str, Tensor]]


def logits(config: Mapping[str, Any], ranks: Ranks, tokens: Tensor) -> Tensor:
    """Logits [tokens, vocab_size] after each of `tokens`, shape [tokens]."""
    ways = config["mapping"]["tp_size"]
    ranks = [{name: tensor.float() for name, tensor in rank.items()} for rank in ranks]
    stages = [ranks[first : first + ways] for first in range(0, len(ranks), ways)]
    x = stages[0][0]["transformer.vocab_embedding.weight"][tokens]
    rotation = _rotation(config, len(tokens))
    for stage in stages:
        local = 0
        while f"transformer.layers.{local}.input_layernorm.weight" in stage[0]:
            prefix = f"transformer.layers.{local}."
            parts = [
                {k.removeprefix(prefix): v for k, v in rank.items() if k.startswith(prefix)}
                for rank in stage
            ]
            x = x + sum(_attention(config, rank, x, rotation) for rank in parts)
            x = x + sum(_mlp(config, rank, x) for rank in parts)
            local += 1
    x = _norm(x, stages[-1][0]["transformer.ln_f.weight"], config["norm_epsilon"])
    return torch.cat([linear(x, rank["lm_head.weight"]) for rank in stages[-1]], -1)[
        :, : config["vocab_size"]
    ]


def _attention(
    config: Mapping[str, Any], rank: Mapping[str, Tensor], x: Tensor, rotation: Tensor
) -> Tensor:
    size, ways = config["head_size"], config["mapping"]["tp_size"]
    heads = config["num_attention_heads"] // ways
    keys = math.ceil(config["num_key_value_heads"] / ways)
    x = _norm(x, rank["input_layernorm.weight"], config["norm_epsilon"])
    packed = linear(x, rank["attention.qkv.weight"], rank.get("attention.qkv.bias"))
    assert config["attn_bias"] == ("attention.qkv.bias" in rank)
    q, k, v = packed.unflatten(-1, (-1, size)).split([heads, keys, keys], dim=1)
    if config.get("qwen_type") == "qwen3":
        q = _norm(q, rank["attention.q_layernorm.weight"], config["norm_epsilon"])
        k = _norm(k, rank["attention.k_layernorm.weight"], config["norm_epsilon"])
    q, k = _rotate(q, rotation), _rotate(k, rotation)
    k, v = (part.repeat_interleave(heads // keys, dim=1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(-1)
    mixed = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
    return linear(mixed, rank["attention.dense.weight"])


def _mlp(config: Mapping[str, Any], rank: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """`fc` is activated and multiplied with `gate`."""
    assert config["hidden_act"] == "silu"
    x = _norm(x, rank["post_layernorm.weight"], config["norm_epsilon"])
    inner = silu(linear(x, rank["mlp.fc.weight"])) * linear(x, rank["mlp.gate.weight"])
    return linear(inner, rank["mlp.proj.weight"])


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def _rotation(config: Mapping[str, Any], length: int) -> Tensor:
    """Angles [tokens, 1, head_size / 2] as complex numbers of length 1."""
    size = config["head_size"]
    frequencies = config["rotary_base"] ** -(torch.arange(0, size, 2) / size)
    scaling = config["rotary_scaling"]
    if scaling is not None:
        assert scaling["rope_type"] == "llama3"
        frequencies = torch.tensor([_scaled(f, scaling) for f in frequencies.tolist()])
    angles = torch.outer(torch.arange(length), frequencies)
    return torch.polar(torch.ones_like(angles), angles).unsqueeze(1)


def _scaled(frequency: float, scaling: Mapping[str, float]) -> float:
    """Llama 3.1: slow waves are slowed down by `factor`, fast ones kept, others in between."""
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = min(max((turns - low) / (high - low), 0.0), 1.0)
    return frequency * (kept + (1 - kept) / scaling["factor"])


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """The "neox" order: the first half of a head is the real part, the second the imaginary."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.complex(first.contiguous(), second.contiguous()) * rotation
    return torch.cat([turned.real, turned.imag], dim=-1)
