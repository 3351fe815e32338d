"""Rewriting a checkpoint keeps every bit that is meant to stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from megatron_soaes.accelerator.safe_pickle import read_common
from megatron_soaes.checkpoint.directory import HF_FILES, iteration_directory
from megatron_soaes.checkpoint.reshard import reshard
from megatron_soaes.checkpoint.show import show
from megatron_soaes.checkpoint.verify import verify
from megatron_soaes.cli import app
from megatron_soaes.errors import UserError
from tests.checkpoint.layouts import EVERY, STEPS
from tests.checkpoint.tensors import newest_tensors

pytestmark = pytest.mark.timeout(900)
"""The first test waits for all the runs."""


@pytest.fixture
def trained(layout_runs: Path) -> Path:
    """Checkpoints of a run on two tensor-parallel processes."""
    return layout_runs / "saved" / "tp2-sp" / "checkpoints"


def test_few_large_files_hold_the_same(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = reshard(trained, out)
    assert report.files == 1
    expected = newest_tensors(trained)
    for key, tensor in newest_tensors(out).items():
        assert torch.equal(tensor, expected.pop(key)), key
    assert not expected
    assert verify(out).damages == []
    assert verify(out).has_checksums
    before, after = show(trained), show(out)
    assert after.state == before.state
    assert after.arguments == before.arguments
    assert after.objects == before.objects
    assert (out / HF_FILES / "config.json").exists()


def test_many_small_files_hold_the_same(trained: Path, tmp_path: Path) -> None:
    report = reshard(trained, tmp_path / "out", iteration=EVERY, file_bytes=50_000)
    assert report.files > 20
    assert report.directory == iteration_directory(tmp_path / "out", EVERY)
    assert verify(tmp_path / "out").damages == []


def test_weights_only_leaves_the_training_behind(trained: Path, tmp_path: Path) -> None:
    reshard(trained, tmp_path / "out", weights_only=True, dtype=torch.bfloat16)
    expected = newest_tensors(trained)
    found = newest_tensors(tmp_path / "out")
    assert found.keys() == {key for key in expected if not key.startswith("optimizer.")}
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key].to(torch.bfloat16)), key
    contents = show(tmp_path / "out")
    assert contents.state is None
    assert contents.arguments["no_save_optim"]
    assert contents.arguments["params_dtype"] == torch.bfloat16
    common = read_common(iteration_directory(tmp_path / "out", STEPS) / "common.pt")
    assert {"optimizer", "opt_param_scheduler"}.isdisjoint(common)
    assert verify(tmp_path / "out").damages == []


def test_optimizer_state_in_another_dtype_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Convert the weights only"):
        reshard(trained, tmp_path / "out", dtype=torch.bfloat16)


def test_nothing_is_written_over(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="something already there"):
        reshard(trained, tmp_path)


def test_a_damaged_source_is_refused(checkpoint_root: Path, tmp_path: Path) -> None:
    shard = iteration_directory(checkpoint_root, 0) / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"__0_0\.distcp"):
        reshard(checkpoint_root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_where_the_result_is(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["checkpoint", "reshard", str(trained), str(out), "--weights-only"]
    result = CliRunner().invoke(app, [*arguments, "--dtype", "bf16"])
    assert result.exit_code == 0, result.output
    assert str(out) in result.output.replace("\n", "")
    assert all(tensor.dtype == torch.bfloat16 for tensor in newest_tensors(out).values())
