from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.rehearsal.initial_model import qwen2_config, write_initial_model
from megatron_soaes.errors import UserError

TINY = {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 48}


def weights_of(directory: Path) -> dict[str, np.ndarray]:
    index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
    weights: dict[str, np.ndarray] = {}
    for shard in sorted(set(index["weight_map"].values())):
        weights |= load_file(directory / shard)
    assert weights.keys() == index["weight_map"].keys()
    assert sum(w.nbytes for w in weights.values()) == index["metadata"]["total_size"]
    return weights


def test_transformers_loads_the_directory_and_generates(corpus: Path) -> None:
    directory = corpus / "base-init"
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("国有企业深化改革，提高质量。", return_tensors="pt").input_ids
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
        longer = model.generate(ids, max_new_tokens=3, min_new_tokens=3)
    assert loss == pytest.approx(math.log(len(tokenizer)), rel=0.05)
    assert longer.shape[1] == ids.shape[1] + 3
    assert model.generation_config.eos_token_id == [2, 0]
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_the_default_model_has_4_0_million_parameters(corpus: Path, tmp_path: Path) -> None:
    write_initial_model(tmp_path / "m", corpus / "tokenizer", qwen2_config(4096), seed=0)
    weights = weights_of(tmp_path / "m")
    assert sum(w.size for w in weights.values()) == 4_036_800
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 1


def test_initial_distributions(corpus: Path, tmp_path: Path) -> None:
    write_initial_model(tmp_path / "m", corpus / "tokenizer", qwen2_config(2048, **TINY), seed=0)
    weights = weights_of(tmp_path / "m")
    for name, weight in weights.items():
        assert weight.dtype == np.float32
        if name.endswith("norm.weight"):
            assert (weight == 1).all()
        elif name.endswith("bias"):
            assert (weight == 0).all()
        else:
            is_residual = "o_proj" in name or "down_proj" in name
            expected = 0.02 / math.sqrt(2 * 2) if is_residual else 0.02
            assert weight.std() == pytest.approx(expected, rel=0.15), name


def test_a_seed_decides_the_weights(corpus: Path, tmp_path: Path) -> None:
    config = qwen2_config(2048, **TINY)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_initial_model(tmp_path / name, corpus / "tokenizer", config, seed)
    a, b, c = (next((tmp_path / n).glob("model-*")).read_bytes() for n in "abc")
    assert a == b != c


def test_a_vocabulary_larger_than_the_embedding_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2048 tokens"):
        write_initial_model(tmp_path / "m", corpus / "tokenizer", qwen2_config(1000), seed=0)
    assert not (tmp_path / "m").exists()


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="a divisor of heads"):
        qwen2_config(100, heads=3, kv_heads=2)
