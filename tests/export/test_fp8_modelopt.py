"""NVIDIA ModelOpt, calibrated on the same texts, finds the same scales and the same FP8 bytes.

Where it differs:
- Its rank files also hold the scales of keys and values one by one; the loader takes their maximum,
  which is what both write as the scale of the cache.
- Its HF directory keeps the scales of joined matrices apart, and those of the cache below 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from megatron_soaes.export.fp8.calibration import Fp8
from megatron_soaes.export.fp8.hf import export_hf_fp8
from megatron_soaes.export.fp8.report import Limits
from megatron_soaes.export.fp8.texts import read_texts
from megatron_soaes.export.source import open_source
from megatron_soaes.export.trtllm.writer import export_trtllm
from tests.checkpoint.tiny import Case, tensors_of
from tests.export.fp8_material import LINEARS, make, make_texts
from tests.export.ranks import read_config, read_ranks

EMBEDDING = "transformer.vocab_embedding.weight"
APART = (".k_cache_scaling_factor", ".v_cache_scaling_factor")


@dataclass(frozen=True)
class Both:
    """Folders with `trtllm` and `hf` in each."""

    ours: Path
    theirs: Path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """One model by two exporters, on two tensor-parallel ranks of two stages."""
    root = tmp_path_factory.mktemp("modelopt-fp8")
    hf_dir, texts = make(root / "model", Case("qwen2", vocab_size=300)), root / "texts.jsonl"
    calibrating = read_texts(make_texts(texts), open_source(hf_dir)).calibrating
    tokens = [text.tolist() for text in calibrating]
    (root / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    fp8 = Fp8(texts, limits=Limits(1.0, 1.0, 1.0))
    export_trtllm(hf_dir, root / "ours/trtllm", tensor_parallel=2, pipeline_parallel=2, fp8=fp8)
    export_hf_fp8(hf_dir, root / "ours/hf", fp8)
    command = [sys.executable, "-W", "ignore", "-m", "tests.export.modelopt_fp8"]
    arguments = [hf_dir, root / "tokens.json", root / "theirs", 2, 2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, *map(str, arguments)], check=True, env=environment)
    return Both(root / "ours", root / "theirs")


def test_rank_files_are_equal_bit_for_bit_except_for_calibrated_rounding(both: Both) -> None:
    left, right = read_ranks(both.ours / "trtllm"), read_ranks(both.theirs / "trtllm")
    assert len(left) == len(right) == 4
    for here, there in zip(left, right, strict=True):
        apart = {name for name in there if name.endswith(APART)}
        assert here.keys() == there.keys() - apart
        assert len([name for name in here if name.endswith("scaling_factor")]) == 2 * (2 * 5 + 1)
        for name, tensor in here.items():
            assert tensor.dtype == there[name].dtype
            if name.endswith(".activation_scaling_factor"):
                torch.testing.assert_close(tensor, there[name], rtol=1e-5, atol=0)
            elif name != EMBEDDING:
                assert torch.equal(tensor.float(), there[name].float()), name


def test_both_configurations_name_the_same_quantisation(both: Both) -> None:
    ours, theirs = (
        read_config(root / "trtllm")["quantization"] for root in (both.ours, both.theirs)
    )
    # An engine that is given no list leaves the output layer out by itself.
    assert (ours.pop("exclude_modules"), theirs.pop("exclude_modules")) == (None, ["lm_head"])
    assert ours == theirs
    here, there = (
        read_config(root / "hf")["quantization_config"] for root in (both.ours, both.theirs)
    )
    different = {name for name in here | there if here.get(name) != there.get(name)}
    # The embedding is no linear layer: nothing would quantise it.
    assert different == {"producer", "ignore"}
    assert set(there["ignore"]) - set(here["ignore"]) == {"model.embed_tokens"}


def test_hf_scales_are_the_largest_of_those_that_are_joined(both: Both) -> None:
    here, there = tensors_of(both.ours / "hf"), tensors_of(both.theirs / "hf")
    assert here.keys() == there.keys()
    groups = [LINEARS[:3], LINEARS[3:4], LINEARS[4:6], LINEARS[6:]]
    for layer in range(4):
        names = {n.split(".")[-2]: n for n in here if f".{layer}." in n and "_proj.weight_" in n}
        for group in groups:
            largest = max(there[names[linear]] for linear in group)
            assert all(here[names[linear]] == largest for linear in group)
    for name in [name for name in here if name.endswith("input_scale")]:
        torch.testing.assert_close(here[name], there[name], rtol=1e-5, atol=0)
    for name in [name for name in here if name.endswith(("k_scale", "v_scale"))]:
        assert here[name] == max(there[name].item(), 1.0)
