"""Packing for a node without network: parts, hashes and what is refused. Nothing is downloaded."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu/bring_transformer_engine.sh"


def bring(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """One file of 2.5 KiB and one of 10 bytes."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "core-1.whl").write_bytes(os.urandom(2560))
    (folder / "pure-1.whl").write_bytes(b"0123456789")
    return folder


@pytest.fixture
def packed(tmp_path: Path, wheels: Path) -> Path:
    result = bring("pack", tmp_path / "packed", "--wheels", wheels, "--limit", "1K")
    assert result.returncode == 0, result.stderr
    return tmp_path / "packed"


def test_big_files_travel_in_parts(packed: Path) -> None:
    assert names(packed) == [
        "SHA256SUMS",
        "bring_transformer_engine.sh",
        "core-1.whl.part-000",
        "core-1.whl.part-001",
        "core-1.whl.part-002",
        "pure-1.whl",
    ]
    assert max(path.stat().st_size for path in packed.glob("core*")) == 1024


def test_the_parts_become_the_files_again(tmp_path: Path, wheels: Path, packed: Path) -> None:
    result = bring("join", packed, tmp_path / "joined")
    assert result.returncode == 0, result.stderr
    assert names(tmp_path / "joined") == ["core-1.whl", "pure-1.whl"]
    for name in ("core-1.whl", "pure-1.whl"):
        assert (tmp_path / "joined" / name).read_bytes() == (wheels / name).read_bytes()


RECORDER = """#!/usr/bin/env bash
# Stands for the node's Python: says yes to every question and records what it is asked to install.
if [[ $1 == -m ]]; then
    echo "arch=$NVTE_CUDA_ARCHS force=$NVTE_PYTORCH_FORCE_BUILD cudnn=$CUDNN_PATH $*" >>"$RECORD"
    ls "$(dirname "${@: -1}")" >>"$RECORD"
fi
"""


def test_the_node_installs_whole_files_and_builds_for_hopper(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wheels / "transformer_engine_torch-1.tar.gz").write_bytes(b"source")
    assert bring("pack", tmp_path / "p", "--wheels", wheels, "--limit", "1K").returncode == 0
    for name in ("python", "cuda/bin/nvcc", "cudnn/include/cudnn.h"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(RECORDER, encoding="utf-8")
        file.chmod(0o755)
    record = tmp_path / "record"
    monkeypatch.setenv("PYTHON", str(tmp_path / "python"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("CUDNN_PATH", str(tmp_path / "cudnn"))
    monkeypatch.setenv("RECORD", str(record))
    monkeypatch.delenv("NVTE_CUDA_ARCHS", raising=False)
    result = bring("install", tmp_path / "p", "--target", tmp_path / "t")
    assert result.returncode == 0, result.stderr
    assert f"Keep {tmp_path / 't'} on PYTHONPATH" in result.stdout
    lines = record.read_text(encoding="utf-8").splitlines()
    wheels_step, build_step = (line for line in lines if "pip install" in line)
    assert "core-1.whl" in wheels_step
    assert "part-" not in record.read_text(encoding="utf-8")
    assert f"arch=90 force=TRUE cudnn={tmp_path / 'cudnn'}" in build_step
    for step in (wheels_step, build_step):
        assert f"--no-deps --no-index --quiet --target {tmp_path / 't'}" in step
    assert "--no-build-isolation" in build_step
    assert build_step.endswith("transformer_engine_torch-1.tar.gz")


@pytest.mark.parametrize("command", ["join", "install"])
def test_a_damaged_part_is_named(tmp_path: Path, packed: Path, command: str) -> None:
    damaged = packed / "core-1.whl.part-001"
    damaged.write_bytes(b"\0" + damaged.read_bytes()[1:])
    arguments = [tmp_path / "joined"] if command == "join" else ["--target", tmp_path / "joined"]
    result = bring(command, packed, *arguments)
    assert result.returncode == 1
    assert "core-1.whl.part-001: FAILED" in result.stderr
    assert "carry them again" in result.stderr
    assert not (tmp_path / "joined").exists()


def test_a_missing_part_is_named(tmp_path: Path, packed: Path) -> None:
    (packed / "core-1.whl.part-002").unlink()
    result = bring("join", packed, tmp_path / "joined")
    assert result.returncode == 1
    assert "core-1.whl.part-002" in result.stderr
    assert not (tmp_path / "joined").exists()


def test_nothing_is_written_over(packed: Path, wheels: Path) -> None:
    result = bring("pack", packed, "--wheels", wheels)
    assert result.returncode == 1
    assert "exists" in result.stderr
    assert "core-1.whl.part-000" in names(packed)


def test_an_interrupted_pack_leaves_nothing(tmp_path: Path) -> None:
    result = bring("pack", tmp_path / "packed", "--wheels", tmp_path / "absent")
    assert result.returncode != 0
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["pack"], "pack needs the folder to write"),
        (["pack", "out", "--speed", "9"], "pack has no option --speed"),
        (["pack", "out", "--limit"], "--limit needs a value"),
        (["install"], "install needs the folder that arrived"),
        (["fetch"], "bring_transformer_engine.sh pack OUT"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], complaint: str) -> None:
    result = bring(*arguments)
    assert result.returncode in (1, 2)
    assert complaint in result.stderr


def test_a_node_without_cuda_is_told_before_anything_is_installed(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON", "false")
    result = bring("install", packed, "--target", tmp_path / "target")
    assert result.returncode == 1
    assert "false has no torch for CUDA 13" in result.stderr
    assert not (tmp_path / "target").exists()
