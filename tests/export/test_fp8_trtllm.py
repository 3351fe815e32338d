"""FP8 rank files and FP8 HF directories: the numbers, the forms, and what a wrong scale does."""

from __future__ import annotations

import filecmp
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.errors import UserError
from megatron_soaes.export.fp8.calibration import Fp8
from megatron_soaes.export.fp8.hf import export_hf_fp8
from megatron_soaes.export.fp8.report import Limits
from megatron_soaes.export.trtllm.check import check
from megatron_soaes.export.trtllm.writer import export_trtllm
from tests.checkpoint.tiny import LLAMA3_ROPE, Case, reference_logits, tensors_of
from tests.export import engine
from tests.export.fp8_material import make, make_texts
from tests.export.ranks import hf_tensors, read_config, read_ranks

BASE = {"rope_type": "default", "rope_theta": 700.0}
CASES = [
    Case("llama", vocab_size=300, rope=LLAMA3_ROPE),
    Case("qwen2", tied=True, vocab_size=300, rope=BASE),
    Case("qwen3", kv_heads=1, vocab_size=301, rope=BASE),
]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
LIMITS = Limits(0.15, 0.02, 0.05)
TOKENS = torch.arange(200) * 37 % 300
WEIGHT_SCALE, INPUT_SCALE = ".weights_scaling_factor", ".activation_scaling_factor"
LAYER = "transformer.layers.0."
Rank = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family, and texts."""
    root = tmp_path_factory.mktemp("fp8")
    for case in CASES:
        make(root / case.family, case)
    make_texts(root / "texts.jsonl")
    return root


def request(folder: Path, **options: Any) -> Fp8:
    return Fp8(folder / "texts.jsonl", limits=LIMITS, **options)


def dequantised(rank: Rank) -> Rank:
    """The numbers that a rank's tensors stand for, in fp32, without scales."""
    found = {}
    for name, tensor in rank.items():
        scale = rank.get(name.removesuffix(".weight") + WEIGHT_SCALE, torch.ones(1))
        if not name.endswith("scaling_factor"):
            found[name] = tensor.float() * scale
    return found


def error(directory: Path, hf_dir: Path, spoil: Callable[[Rank], object] = lambda rank: 0) -> float:
    """Of the logits that dequantised rank files give, over those of `transformers`."""
    ranks = read_ranks(directory)
    spoil(ranks[0])
    found = engine.logits(read_config(directory), [dequantised(rank) for rank in ranks], TOKENS)
    expected = reference_logits(hf_dir, TOKENS.unsqueeze(0))[0]
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("ways", "stages"), [(1, 1), (4, 2)])
@EVERY_CASE
def test_dequantised_ranks_compute_what_transformers_computes(
    folder: Path, tmp_path: Path, case: Case, ways: int, stages: int
) -> None:
    out, hf_dir = tmp_path / "out", folder / case.family
    report = export_trtllm(
        hf_dir, out, tensor_parallel=ways, pipeline_parallel=stages, fp8=request(folder)
    )
    assert report.bytes == sum(t.nbytes for rank in read_ranks(out) for t in rank.values())
    assert report.fp8 is not None
    assert read_config(out)["producer"]["fp8"]["logit_error"] == report.fp8.logit_error
    assert check(out, hf_dir).problems == []
    assert 0.005 < error(out, hf_dir) < 0.1


def wrong_scale(name: str, factor: float) -> Callable[[Rank], object]:
    return lambda rank: rank[LAYER + name].mul_(factor)


@pytest.mark.parametrize(
    "spoil",
    [
        wrong_scale("attention.qkv" + WEIGHT_SCALE, 2.0),
        wrong_scale("attention.dense" + WEIGHT_SCALE, 0.5),
        wrong_scale("mlp.fc" + WEIGHT_SCALE, 2.0),
        # As if it were the inverse.
        lambda rank: rank[LAYER + "mlp.proj" + WEIGHT_SCALE].reciprocal_(),
    ],
)
def test_a_wrong_scale_gives_other_logits(
    folder: Path, tmp_path: Path, spoil: Callable[[Rank], object]
) -> None:
    export_trtllm(folder / "llama", tmp_path / "out", fp8=request(folder))
    right = error(tmp_path / "out", folder / "llama")
    assert error(tmp_path / "out", folder / "llama", spoil) > 2 * right


@EVERY_CASE
def test_both_formats_hold_the_same_numbers(folder: Path, tmp_path: Path, case: Case) -> None:
    hf_dir, fp8 = folder / case.family, request(folder)
    export_trtllm(hf_dir, tmp_path / "ranks", tensor_parallel=8, pipeline_parallel=3, fp8=fp8)
    export_hf_fp8(hf_dir, tmp_path / "hf", fp8)
    ranks, stored = read_ranks(tmp_path / "ranks"), tensors_of(tmp_path / "hf")
    config = read_config(tmp_path / "ranks")
    found = hf_tensors(config, [{n: t.float() for n, t in rank.items()} for rank in ranks])
    for name, tensor in found.items():
        expected = stored.get(name, stored["model.embed_tokens.weight"])
        assert torch.equal(tensor, expected.float()), name
    # Layers 0 and 1 are on the first stage of 3, layer 3 on the last.
    for rank, local, layer in ((0, 0, 0), (7, 1, 1), (16, 0, 3)):
        here, there = f"transformer.layers.{local}.", f"model.layers.{layer}."
        for module, hf in (("attention.qkv", "self_attn.k_proj"), ("mlp.gate", "mlp.up_proj")):
            pairs = (WEIGHT_SCALE, ".weight_scale"), (INPUT_SCALE, ".input_scale")
            for scale, hf_scale in pairs:
                assert ranks[rank][here + module + scale] == stored[there + hf + hf_scale]
        cache = ranks[rank][here + "attention.kv_cache_scaling_factor"]
        assert cache == stored[there + "self_attn.k_proj.k_scale"] >= 1.0
        assert cache == stored[there + "self_attn.v_proj.v_scale"]


def test_an_fp8_hf_directory_is_near_its_model_and_says_what_it_is(
    folder: Path, tmp_path: Path
) -> None:
    report = export_hf_fp8(folder / "qwen3", tmp_path / "out", request(folder))
    stored, original = tensors_of(tmp_path / "out"), tensors_of(folder / "qwen3")
    scales = {name for name in stored if name not in original}
    assert report.tensors == len(stored)
    assert len(scales) == 4 * (2 * 7 + 2)
    assert all(stored[name].shape == () and stored[name].dtype == torch.float32 for name in scales)
    for name, tensor in original.items():
        if name + "_scale" not in stored:
            assert torch.equal(stored[name], tensor)
            continue
        assert stored[name].dtype == torch.float8_e4m3fn
        restored = stored[name].float() * stored[name + "_scale"]
        assert (restored - tensor.float()).norm() < 0.04 * tensor.float().norm()
    fields = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text(encoding="utf-8"))
    assert fields["quantization"] == {
        "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]
    }  # fmt: skip
    config = read_config(tmp_path / "out")["quantization_config"]
    assert (config["quant_method"], config["ignore"]) == ("modelopt", ["lm_head"])
    assert config["kv_cache_scheme"]["num_bits"] == 8
    measured = json.loads((tmp_path / "out" / "fp8_report.json").read_text(encoding="utf-8"))
    assert measured["logit_error"] == report.quality.logit_error
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_excluded_matrices_keep_their_numbers(folder: Path, tmp_path: Path) -> None:
    fp8 = request(folder, exclude=("gate_up", "down_proj"), cache=False)
    export_trtllm(folder / "llama", tmp_path / "ranks", tensor_parallel=2, fp8=fp8)
    export_hf_fp8(folder / "llama", tmp_path / "hf", fp8)
    found = check(tmp_path / "ranks", folder / "llama")
    assert (found.problems, found.compared) == ([], 39 - 4 * 4)
    quantization = read_config(tmp_path / "ranks")["quantization"]
    assert quantization["kv_cache_quant_algo"] is None
    assert {"*lm_head", "*mlp.fc", "*mlp.gate", "*mlp.proj"} < set(quantization["exclude_modules"])
    stored, original = tensors_of(tmp_path / "hf"), tensors_of(folder / "llama")
    name = "model.layers.3.mlp.down_proj"
    assert torch.equal(stored[name + ".weight"], original[name + ".weight"])
    assert not [scale for scale in stored if "mlp" in scale and "scale" in scale]
    assert not [scale for scale in stored if scale.endswith(("k_scale", "v_scale"))]
    config = read_config(tmp_path / "hf")["quantization_config"]
    assert name in config["ignore"]
    assert "kv_cache_scheme" not in config


def test_a_megatron_checkpoint_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    import_hf(folder / "qwen2", tmp_path / "checkpoint", verify=False)
    for source, name in ((folder / "qwen2", "a"), (tmp_path / "checkpoint", "b")):
        export_trtllm(source, tmp_path / name, tensor_parallel=2, fp8=request(folder))
        export_hf_fp8(source, tmp_path / f"{name}-hf", request(folder))
    names = ["config.json", "rank0.safetensors", "rank1.safetensors"]
    for left, right, files in (("a", "b", names), ("a-hf", "b-hf", ["model.safetensors"])):
        _, different, errors = filecmp.cmpfiles(
            tmp_path / left, tmp_path / right, files, shallow=False
        )
        assert (different, errors) == ([], [])


def test_fp16_models_can_be_quantised_too(folder: Path, tmp_path: Path) -> None:
    export_trtllm(folder / "qwen2", tmp_path / "out", dtype="fp16", fp8=request(folder))
    assert check(tmp_path / "out", folder / "qwen2").problems == []
    assert read_ranks(tmp_path / "out")[0]["lm_head.weight"].dtype == torch.float16


def test_nothing_is_written_when_fp8_costs_too_much(folder: Path, tmp_path: Path) -> None:
    strict = Fp8(folder / "texts.jsonl", limits=Limits(0.001, math.inf, math.inf))
    with pytest.raises(UserError, match="FP8: logit error"):
        export_trtllm(folder / "qwen2", tmp_path / "out", fp8=strict)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="something already there"):
        export_hf_fp8(folder / "qwen2", tmp_path, request(folder))
