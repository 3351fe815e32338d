"""What `soaes doctor` sees, on made-up machines and on this one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_soaes.accelerator.machine import (
    FP8_RECIPES,
    Machine,
    doctor,
    generation_of,
    read_machine,
)

BARE = Machine("cpu", None, 0, None, 0, 4, 16 * 2**30, {}, None, {})
H200 = Machine(
    device="cuda",
    gpu_name="NVIDIA H200",
    gpu_count=8,
    compute_capability=(9, 0),
    gpu_memory_bytes=140 * 2**30,
    cores=64,
    memory_bytes=2**40,
    versions={"torch": "2.11.0", "transformer-engine": "2.11.0", "flash-attn": "2.8.3"},
    apex="nvidia",
    commands={"sbatch": "/usr/bin/sbatch"},
)


def states(machine: Machine) -> dict[str, str]:
    return {finding.component: finding.state for finding in doctor(machine)}


def test_this_machine_is_read() -> None:
    machine = read_machine()

    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert machine.versions["torch"].startswith("2.")
    assert (machine.device == "cuda") == (machine.gpu_count > 0)
    assert len(doctor()) == len(doctor(machine))


@pytest.mark.parametrize(
    ("capability", "generation"),
    [
        ((8, 0), "ampere"),
        ((8, 6), "ampere"),
        ((8, 9), "ada"),
        ((9, 0), "hopper"),
        ((10, 0), "blackwell"),
        ((10, 3), "blackwell"),
        ((7, 0), None),
        ((13, 0), None),
    ],
)
def test_compute_capability_says_the_generation(
    capability: tuple[int, int], generation: str | None
) -> None:
    assert generation_of(capability) == generation


def test_a_gpu_of_unknown_generation_has_no_fp8() -> None:
    assert replace(H200, compute_capability=(13, 0)).fp8_recipes == ()
    assert H200.fp8_recipes == FP8_RECIPES["hopper"] == ("delayed", "tensorwise", "blockwise")


def test_a_full_node() -> None:
    assert states(H200) == {
        "torch": "2.11.0",
        "CUDA": "8 x NVIDIA H200, 140 GiB",
        "megatron-core": "not installed",
        "transformer-engine": "2.11.0",
        "FP8": "delayed, tensorwise, blockwise",
        "attention": "cuDNN, flash-attn 2.8.3",
        "apex": "NVIDIA's fused kernels",
        "TensorRT-LLM": "no trtllm-build on PATH",
        "Slurm": "/usr/bin/sbatch",
    }


def test_a_bare_node_says_what_each_missing_piece_would_give() -> None:
    findings = {finding.component: finding for finding in doctor(BARE)}

    assert findings["CUDA"].state == "no GPU (4 cores, 16 GiB)"
    assert findings["FP8"].state == "no GPU"
    assert findings["attention"].state == "PyTorch SDPA on the CPU"
    assert "Engines" in findings["TensorRT-LLM"].enables
    assert all(finding.enables for finding in findings.values())


def test_fp8_and_attention_wait_for_transformer_engine() -> None:
    found = states(replace(H200, versions={}))

    assert found["FP8"] == "needs transformer-engine"
    assert found["attention"] == "PyTorch SDPA"
    assert states(replace(H200, compute_capability=(8, 0)))["FP8"] == "not on this GPU"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["apex/__init__.py", "apex/optimizers/__init__.py", "amp_C.py"], "nvidia"),
        (["apex/__init__.py", "apex/optimizers/__init__.py"], None),
        (["apex/__init__.py", "apex/models.py"], "unrelated"),
        ([], None),
    ],
)
def test_apex_is_told_from_its_namesake_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], expected: str | None
) -> None:
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))

    machine = read_machine()
    assert machine.apex == expected
    if expected == "unrelated":
        assert "pip uninstall apex" in next(
            f.enables for f in doctor(machine) if f.component == "apex"
        )


def test_commands_are_found_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "trtllm-build"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert states(read_machine())["TensorRT-LLM"] == str(command)


def test_the_module_needs_no_torch() -> None:
    program = "import sys, megatron_soaes.accelerator.machine; print('torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "False"
