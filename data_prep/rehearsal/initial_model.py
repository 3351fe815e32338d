"""An untrained Qwen2 model as a Hugging Face directory, written with numpy alone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Tokenizer

from data_prep.rehearsal.tokenizer import END_OF_TEXT, MAX_LENGTH, PAD, TURN_END
from megatron_soaes.errors import UserError
from megatron_soaes.files import atomic_directory, write_json

INITIALIZER_RANGE = 0.02
SHARD_BYTES = 8_000_000

Array = NDArray[np.float32]


def qwen2_config(
    vocab_size: int,
    *,
    layers: int = 8,
    hidden: int = 192,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 48,
    ffn: int = 512,
    max_positions: int = MAX_LENGTH,
    rope_theta: float = 10000.0,
) -> dict[str, object]:
    """A `config.json` of a Qwen2 model with tied embeddings; the default has 4.0M parameters.

    Raises UserError when the query heads are no multiple of the key-value heads.
    """
    if heads % kv_heads:
        raise UserError(
            "kv_heads", str(kv_heads), f"a divisor of heads ({heads})", "Change kv_heads or heads."
        )
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": INITIALIZER_RANGE,
        "intermediate_size": ffn,
        "max_position_embeddings": max_positions,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocab_size,
    }


def draft_config(vocab_size: int) -> dict[str, object]:
    """The shape of the draft beside the default: two narrow layers, 0.6M parameters."""
    return qwen2_config(vocab_size, layers=2, hidden=96, heads=2, kv_heads=2, head_dim=48, ffn=256)


def write_initial_model(
    out: Path, tokenizer_dir: Path, config: dict[str, object], seed: int
) -> None:
    """Write `out`: config, float32 weights in shards, generation config and the tokenizer's files.

    Weights are normal(0, 0.02), those that write to the residual stream divided by
    sqrt(2 * layers) as in GPT-2; norms are one, biases zero. `config` comes from `qwen2_config`;
    the ids of the special tokens are taken from the tokenizer. Raises UserError when the
    vocabulary is larger than the embedding, FileExistsError when `out` exists.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    size, rows = tokenizer.get_vocab_size(), config["vocab_size"]
    if not isinstance(rows, int) or size > rows:
        raise UserError(
            f"{tokenizer_dir}/tokenizer.json",
            f"{size} tokens",
            f"at most vocab_size ({rows}) of the model's configuration",
            "Build the configuration with the tokenizer's vocabulary size.",
        )
    end, turn_end, pad = (tokenizer.token_to_id(t) for t in (END_OF_TEXT, TURN_END, PAD))
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": pad}
    with atomic_directory(out) as directory:
        for path in sorted(tokenizer_dir.iterdir()):
            shutil.copy(path, directory / path.name)
        write_json(directory / "config.json", config | ids)
        write_json(
            directory / "generation_config.json",
            {**ids, "eos_token_id": [turn_end, end], "do_sample": False},
        )
        _write_shards(directory, dict(_initial_weights(config, seed)))


def _initial_weights(config: dict[str, object], seed: int) -> Iterator[tuple[str, Array]]:
    """Every parameter by its Hugging Face name; linear weights are [out, in]."""
    rng = np.random.default_rng(seed)
    sizes = {key: value for key, value in config.items() if isinstance(value, int)}
    hidden, ffn, layers = (
        sizes[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    query = sizes["num_attention_heads"] * sizes["head_dim"]
    key_value = sizes["num_key_value_heads"] * sizes["head_dim"]
    residual = INITIALIZER_RANGE / math.sqrt(2 * layers)

    def normal(rows: int, columns: int, deviation: float = INITIALIZER_RANGE) -> Array:
        return rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(deviation)

    yield "model.embed_tokens.weight", normal(sizes["vocab_size"], hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", np.ones(hidden, np.float32)
        for name, rows in (("q", query), ("k", key_value), ("v", key_value)):
            yield f"{prefix}.self_attn.{name}_proj.weight", normal(rows, hidden)
            yield f"{prefix}.self_attn.{name}_proj.bias", np.zeros(rows, np.float32)
        yield f"{prefix}.self_attn.o_proj.weight", normal(hidden, query, residual)
        yield f"{prefix}.post_attention_layernorm.weight", np.ones(hidden, np.float32)
        yield f"{prefix}.mlp.gate_proj.weight", normal(ffn, hidden)
        yield f"{prefix}.mlp.up_proj.weight", normal(ffn, hidden)
        yield f"{prefix}.mlp.down_proj.weight", normal(hidden, ffn, residual)
    yield "model.norm.weight", np.ones(hidden, np.float32)


def _write_shards(directory: Path, weights: dict[str, Array]) -> None:
    """`model-0000i-of-0000n.safetensors` of about `SHARD_BYTES` each, and their index."""
    shards: list[dict[str, Array]] = [{}]
    used = 0
    for name, weight in weights.items():
        if shards[-1] and used + weight.nbytes > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = weight
        used += weight.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (directory / file_name).write_bytes(save(shard, metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)
