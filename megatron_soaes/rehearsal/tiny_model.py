"""Untrained stand-ins for a recipe's models: the same family and options, much smaller."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data_prep.rehearsal.tokenizer import (
    END_OF_TEXT,
    PAD,
    TURN_END,
    save_tokenizer,
    train_tokenizer,
)
from megatron_soaes.files import (
    atomic_directory,
    publish_directory,
    sha256_file,
    sha256_json,
    temporary_sibling,
    write_json,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout

HEAD_DIM = 8
VOCABULARY = 1024
PADDING_ROWS = 64
"""Of the larger of two embeddings: real models of one tokenizer differ in them, too."""
WEIGHT_SHARD = "500KB"
TOKENIZER_FILE = "tokenizer.json"
SPEC_SUFFIX = ".made.json"
"""Beside a model: what it was made of."""


def train_stand_in(texts: Iterable[str], out: Path) -> Path:
    """Write a ChatML tokenizer for these texts to `out`, unless it is there."""
    if not out.is_dir():
        temporary = temporary_sibling(out)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        save_tokenizer(train_tokenizer(texts, VOCABULARY), temporary)
        publish_directory(temporary, out)
    return out


@dataclass(frozen=True)
class StandIn:
    """What a tiny model is made from."""

    config: dict[str, Any]
    """The whole config.json of the model it stands for."""
    shape: ModelShape
    layouts: list[Layout]
    """Every layout of the recipe, at its size, in which the model is built."""
    layers: int
    tokenizer: Path
    """A directory: that of the model itself, or of a tokenizer alone."""
    real_tokenizer: bool
    """Whether it is a tokenizer that the model's embedding was made for."""
    padding_rows: int = 0

    def tiny_config(self) -> dict[str, Any]:
        """The model's config.json with a fraction of the layers, heads and widths.

        Query heads for each KV head, tied or untied embeddings, positions, rope and its scaling are
        kept. There are two KV heads, and one where the recipe splits further than there are KV
        heads, so that they are repeated here, too.
        """
        shape, repeated = self.shape, self._repeats_kv_heads()
        group = shape.heads // shape.kv_heads
        kv_heads = 1 if repeated else 2
        # Two processes share the heads.
        heads = kv_heads * group + (kv_heads * group) % 2
        # Some models have heads wider, together, than the residual stream.
        head_dim = HEAD_DIM * (2 if shape.query_width > shape.hidden else 1)
        small = {
            "num_hidden_layers": self.layers,
            "hidden_size": heads * HEAD_DIM,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": 2 * heads * HEAD_DIM,
            "vocab_size": self._vocabulary(),
        }
        if "head_dim" in self.config:
            small["head_dim"] = head_dim
        if "layer_types" in self.config:
            small["layer_types"] = self.config["layer_types"][: self.layers]
        return self.config | small | self._special_ids()

    def _repeats_kv_heads(self) -> bool:
        kv_heads = self.shape.kv_heads
        return kv_heads == 1 or any(one.tensor_parallel > kv_heads for one in self.layouts)

    def _vocabulary(self) -> int:
        if self.real_tokenizer:
            return self.shape.vocab_size
        return max(_vocabulary_of(self.tokenizer).values()) + 1 + self.padding_rows

    def _special_ids(self) -> dict[str, Any]:
        if self.real_tokenizer:
            return {}
        ids = _stand_in_ids(self.tokenizer)
        return {name: one for name, one in ids.items() if name in self.config}


def _stand_in_ids(tokenizer: Path) -> dict[str, int]:
    """Ids of the stand-in tokenizer by the names of a config.json."""
    vocabulary = _vocabulary_of(tokenizer)
    end, pad = vocabulary[END_OF_TEXT], vocabulary[PAD]
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": pad}


def _generation(tokenizer: Path) -> dict[str, Any]:
    """A generation_config.json that stops at either end, as those of chat models do."""
    ids = _stand_in_ids(tokenizer)
    ends = [_vocabulary_of(tokenizer)[TURN_END], ids["eos_token_id"]]
    return {**ids, "eos_token_id": ends, "do_sample": False}


def _vocabulary_of(tokenizer: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(tokenizer / TOKENIZER_FILE)).get_vocab()


def write_tiny_model(out: Path, model: StandIn, seed: int) -> Path:
    """Write the HF directory `out` with random weights in the dtype that the config names.

    One that is there is kept if it was made of the same, else made anew.
    """
    config = model.tiny_config()
    made_of = {
        "config": config,
        "seed": seed,
        "files": {one.name: sha256_file(one) for one in _tokenizer_files(model.tokenizer)},
    }
    spec = out.with_name(out.name + SPEC_SUFFIX)
    is_there = out.is_dir() and spec.is_file()
    if is_there and json.loads(spec.read_text(encoding="utf-8")) == sha256_json(made_of):
        return out
    shutil.rmtree(out, ignore_errors=True)
    with atomic_directory(out) as directory:
        _write_weights(directory, config, seed)
        for file in _tokenizer_files(model.tokenizer):
            shutil.copyfile(file, directory / file.name)
        if not model.real_tokenizer:
            write_json(directory / "generation_config.json", _generation(model.tokenizer))
        write_json(directory / "config.json", config)
    write_json(spec, sha256_json(made_of))
    return out


def _tokenizer_files(directory: Path) -> list[Path]:
    """All small files but the model's shape: tokenizer, chat template, generation settings."""
    return sorted(
        file
        for file in directory.iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and file.suffix in {".json", ".jinja", ".txt", ".model"}
        and file.name != "config.json"
        and not file.name.endswith(".index.json")
    )


def _write_weights(directory: Path, config: dict[str, Any], seed: int) -> None:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    write_json(directory / "config.json", config)
    settings = transformers.AutoConfig.from_pretrained(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(settings)
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    model.to(getattr(torch, str(name))).save_pretrained(directory, max_shard_size=WEIGHT_SHARD)
