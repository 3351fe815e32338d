"""Stand-ins for models: the same family and options, and files that every tool reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_soaes.recipe.shapes import ModelShape, read_shape, shape_from_config
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.rehearsal.texts import tokenizer_texts
from megatron_soaes.rehearsal.tiny_model import StandIn, train_stand_in, write_tiny_model
from tests.rehearsal.small_recipes import SHAPE

QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_stand_in(tokenizer_texts(), tmp_path_factory.mktemp("made") / "tokenizer")


def stand_in(tokenizer: Path, layouts: tuple[Layout, ...] = (), **config: Any) -> StandIn:
    whole = SHAPE | config
    shape = shape_from_config(whole, "config.json")
    return StandIn(whole, shape, list(layouts), 4, tokenizer, real_tokenizer=False)


def tiny_shape(model: StandIn) -> ModelShape:
    return shape_from_config(model.tiny_config(), "tiny")


@pytest.mark.parametrize("config", [{}, QWEN3, LLAMA], ids=["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_options_of_the_model_are_those_of_its_stand_in(
    tokenizer: Path, tmp_path: Path, config: dict[str, Any], tied: bool
) -> None:
    model = stand_in(tokenizer, tie_word_embeddings=tied, **config)
    out = write_tiny_model(tmp_path / "model", model, seed=1)
    wanted, found = model.shape, read_shape(out / "config.json")
    for option in (
        "family", "tied_embeddings", "qkv_bias", "qk_norm", "norm_eps", "rope_theta",
        "rope_scaling", "max_position",
    ):  # fmt: skip
        assert getattr(found, option) == getattr(wanted, option), option
    assert found.heads // found.kv_heads == wanted.heads // wanted.kv_heads
    assert (found.query_width > found.hidden) == (wanted.query_width > wanted.hidden)
    assert found.parameters < 1e6
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert sum(one.numel() for one in loaded.parameters()) == found.parameters


def test_kv_heads_are_repeated_where_the_recipe_repeats_them(tokenizer: Path) -> None:
    enough = tiny_shape(stand_in(tokenizer, (Layout(tensor_parallel=4),)))
    assert (enough.heads, enough.kv_heads) == (8, 2)
    few = tiny_shape(stand_in(tokenizer, (Layout(tensor_parallel=8),)))
    assert (few.heads, few.kv_heads) == (4, 1)


def test_two_processes_share_the_heads_of_an_odd_group(tokenizer: Path) -> None:
    odd = stand_in(
        tokenizer,
        (Layout(tensor_parallel=8),),
        num_attention_heads=24,
        num_key_value_heads=8,
        hidden_size=1536,
    )
    assert tiny_shape(odd).heads == 6
    alone = stand_in(tokenizer, num_attention_heads=7, num_key_value_heads=1, hidden_size=896)
    assert tiny_shape(alone).heads % 2 == 0


def test_the_tokenizer_talks_and_its_ids_are_in_the_config(tokenizer: Path, tmp_path: Path) -> None:
    out = write_tiny_model(tmp_path / "model", stand_in(tokenizer, eos_token_id=151645), seed=1)
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    talk = [{"role": "user", "content": "什么是质量管理？"}]
    assert "质量管理" in loaded.apply_chat_template(talk, tokenize=False)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == loaded.eos_token_id
    assert config["vocab_size"] == len(loaded)


def test_a_real_tokenizer_keeps_its_vocabulary(tokenizer: Path) -> None:
    model = stand_in(tokenizer)
    real = StandIn(model.config, model.shape, [], 4, tokenizer, real_tokenizer=True)
    assert real.tiny_config()["vocab_size"] == SHAPE["vocab_size"]


def test_a_model_is_made_once_and_again_when_it_would_be_another(
    tokenizer: Path, tmp_path: Path
) -> None:
    out = write_tiny_model(tmp_path / "model", stand_in(tokenizer), seed=1)
    weights = out / "model.safetensors.index.json"
    first = weights.stat().st_mtime_ns
    assert write_tiny_model(out, stand_in(tokenizer), seed=1) == out
    assert weights.stat().st_mtime_ns == first
    write_tiny_model(out, stand_in(tokenizer, tie_word_embeddings=True), seed=1)
    assert read_shape(out / "config.json").tied_embeddings
