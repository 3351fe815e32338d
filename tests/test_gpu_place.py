"""The GPU checks on a machine without a GPU: they are collected, counted and explained, and
everything they are made of but the GPU works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_soaes.accelerator.groups import Rendezvous, model_parallel, process_group
from megatron_soaes.checkpoint.import_hf import import_hf
from tests.gpu.curve import cpu_curve
from tests.gpu.material import FAMILIES, make_model, packed_logits, rms, separate_logits
from tests.gpu.test_import_parity import BF16_ERROR
from tests.gpu.test_switches import SWITCHES

ROOT = Path(__file__).parents[1]


def test_without_a_gpu_every_check_is_skipped_with_its_reason() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-rs"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    checks = 3 * len(FAMILIES) + 2 * len(FAMILIES) + 2 + 3 + len(SWITCHES)
    assert f"{checks} skipped" in result.stdout
    assert "no CUDA device on this machine" in result.stdout
    assert f"{checks} GPU checks were not run" in result.stdout
    assert "python -m benchmarks.gpu.run_all" in result.stdout
    assert not any(word in result.stdout for word in ("passed", "failed", "error"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("gpu-place")
    hf_dir = make_model(folder / "hf", "qwen3")
    import_hf(hf_dir, folder / "checkpoint", verify=False)
    return hf_dir, folder / "checkpoint"


def test_the_bf16_bound_holds_for_the_local_layers(model: tuple[Path, Path]) -> None:
    hf_dir, checkpoint = model
    exact = separate_logits(hf_dir, torch.float32)
    theirs = rms(separate_logits(hf_dir, torch.bfloat16) - exact)
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        packed = packed_logits(checkpoint, hf_dir, torch.bfloat16)
    assert theirs > 0
    assert rms(packed - exact) <= BF16_ERROR * theirs
    assert rms(packed.roll(1, dims=0) - exact) > 20 * BF16_ERROR * theirs


def test_the_reference_curve_of_the_cpu_falls_beside_an_installed_transformer_engine(
    model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "transformer_engine.py").write_text("1 / 0  # nothing for a CPU in here")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    losses = cpu_curve(*model, steps=3)
    assert losses[2] < losses[1] < losses[0]
