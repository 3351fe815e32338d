"""Rank files put together again, by rules of their own: nothing here knows the exporter."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Ranks = Sequence[Mapping[str, Tensor]]
MATRICES = {
    "input_layernorm.weight": ("input_layernorm.weight", None),
    "post_layernorm.weight": ("post_attention_layernorm.weight", None),
    "attention.q_layernorm.weight": ("self_attn.q_norm.weight", None),
    "attention.k_layernorm.weight": ("self_attn.k_norm.weight", None),
    "attention.dense.weight": ("self_attn.o_proj.weight", 1),
    "mlp.fc.weight": ("mlp.gate_proj.weight", 0),
    "mlp.gate.weight": ("mlp.up_proj.weight", 0),
    "mlp.proj.weight": ("mlp.down_proj.weight", 1),
}
"""HF names, and the axis along which the ranks of a stage are laid side by side."""


def read_config(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return config


def write_config(directory: Path, config: object) -> None:
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")


def read_ranks(directory: Path) -> list[dict[str, Tensor]]:
    count = len(list(directory.glob("rank*.safetensors")))
    return [load_file(directory / f"rank{rank}.safetensors") for rank in range(count)]


def edit_rank(directory: Path, rank: int, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of one rank file."""
    file = directory / f"rank{rank}.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def hf_tensors(config: Mapping[str, Any], ranks: Ranks) -> dict[str, Tensor]:
    """The HF tensors that the ranks hold together; what should be equal on several ranks is."""
    ways = config["mapping"]["tp_size"]
    stages = [ranks[first : first + ways] for first in range(0, len(ranks), ways)]
    found = {"model.embed_tokens.weight": _same(stages[0], "transformer.vocab_embedding.weight")}
    layer = 0
    for stage in stages:
        local = 0
        while f"transformer.layers.{local}.post_layernorm.weight" in stage[0]:
            names = f"transformer.layers.{local}.", f"model.layers.{layer}."
            found |= _layer(config, stage, *names)
            local, layer = local + 1, layer + 1
    assert layer == config["num_hidden_layers"]
    found["model.norm.weight"] = _same(stages[-1], "transformer.ln_f.weight")
    output = torch.cat([rank["lm_head.weight"] for rank in stages[-1]])
    assert len(output) < config["vocab_size"] + ways
    assert not output[config["vocab_size"] :].any()
    found["lm_head.weight"] = output[: config["vocab_size"]]
    return found


def _layer(config: Mapping[str, Any], stage: Ranks, here: str, hf: str) -> dict[str, Tensor]:
    found = {}
    for name, (hf_name, axis) in MATRICES.items():
        if here + name not in stage[0]:
            continue
        parts = [rank[here + name] for rank in stage]
        found[hf + hf_name] = _same(stage, here + name) if axis is None else torch.cat(parts, axis)
    for kind in ("weight", "bias"):
        if f"{here}attention.qkv.{kind}" in stage[0]:
            packed = [rank[f"{here}attention.qkv.{kind}"] for rank in stage]
            for letter, part in zip("qkv", _unpacked(config, packed), strict=True):
                found[f"{hf}self_attn.{letter}_proj.{kind}"] = part
    return found


def _unpacked(config: Mapping[str, Any], packed: Sequence[Tensor]) -> list[Tensor]:
    """Queries, keys and values of all ranks; a key head that ranks share is taken once."""
    size, keys, ways = config["head_size"], config["num_key_value_heads"], len(packed)
    queries = config["num_attention_heads"] // ways * size
    key_rows = max(1, keys // ways) * size
    parts = [part.split([queries, key_rows, key_rows]) for part in packed]
    sharing = max(1, ways // keys)
    for way in range(ways):
        assert torch.equal(parts[way][1], parts[way // sharing * sharing][1])
        assert torch.equal(parts[way][2], parts[way // sharing * sharing][2])
    return [
        torch.cat([part[0] for part in parts]),
        torch.cat([part[1] for part in parts[::sharing]]),
        torch.cat([part[2] for part in parts[::sharing]]),
    ]


def _same(stage: Ranks, name: str) -> Tensor:
    first = stage[0][name]
    assert all(torch.equal(rank[name], first) for rank in stage)
    return first
