"""A checkpoint that is not what was saved is found out, and the file is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from typer.testing import CliRunner

from megatron_soaes.accelerator.safe_pickle import read_metadata
from megatron_soaes.checkpoint import checksums
from megatron_soaes.checkpoint.checksums import FileSum
from megatron_soaes.checkpoint.directory import iteration_directory
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.checkpoint.verify import verify
from megatron_soaes.cli import app
from megatron_soaes.errors import UserError

SHARD = "__0_0.distcp"


@pytest.fixture
def folder(checkpoint_root: Path) -> Path:
    """A checkpoint without recorded sums."""
    return iteration_directory(checkpoint_root, 0)


@pytest.fixture
def summed(folder: Path) -> Path:
    """The same with sums, as a training run saves it."""
    checksums.record(folder, {})
    return folder


def damages(folder: Path) -> list[str]:
    return [str(damage) for damage in verify(folder).damages]


def alter(file: Path, position: int, by: int = 1) -> None:
    """Change one byte."""
    content = bytearray(file.read_bytes())
    content[position] = (content[position] + by) % 256
    file.write_bytes(content)


def truncate(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def test_what_was_saved_is_found_undamaged(summed: Path) -> None:
    report = verify(summed.parent)
    assert report.damages == []
    assert report.has_checksums
    assert report.directory == summed
    assert report.files == len(list(summed.iterdir()))


def test_without_sums_the_report_says_what_was_not_checked(folder: Path) -> None:
    report = verify(folder)
    assert report.damages == []
    assert not report.has_checksums
    assert "changed numbers would go unnoticed" in str(report)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(data=st.data())
def test_any_altered_byte_of_any_file_is_found_and_its_file_named(
    summed: Path, data: st.DataObject
) -> None:
    names = sorted(p.name for p in summed.iterdir() if p.name != checksums.FILE_NAME)
    file = summed / data.draw(st.sampled_from(names))
    before = file.read_bytes()
    alter(file, data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(1, 255)))
    found = verify(summed).damages
    file.write_bytes(before)
    assert [damage.file for damage in found] == [file.name]


def test_a_truncated_shard_is_named_with_both_sizes(summed: Path) -> None:
    size = (summed / SHARD).stat().st_size
    truncate(summed / SHARD, size - 1)
    assert damages(summed) == [f"{SHARD}: {size - 1} bytes; {size} were saved"]


@pytest.mark.parametrize("name", [SHARD, ".metadata", "common.pt", "metadata.json"])
def test_a_missing_file_is_named(summed: Path, name: str) -> None:
    (summed / name).unlink()
    assert damages(summed) == [f"{name}: missing"]


def test_a_damaged_list_of_sums_is_named(summed: Path) -> None:
    (summed / checksums.FILE_NAME).write_text('{"files": {"a": 1}}')
    assert damages(summed)[0].startswith(f"{checksums.FILE_NAME}: damaged content")


def test_a_truncated_shard_is_found_without_sums(folder: Path) -> None:
    truncate(folder / SHARD, 5000)
    assert damages(folder)[0].startswith(f"{SHARD}: 5000 bytes; ")


@pytest.mark.parametrize("name", [SHARD, ".metadata", "common.pt", "metadata.json"])
def test_a_missing_file_is_found_without_sums(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert {damage.file for damage in verify(folder).damages} == {name}


def test_unreadable_data_is_found_without_sums(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(bytes(len(content)))
    assert "unreadable content" in damages(folder)[0]


def test_a_tensor_of_another_shape_is_found_without_sums(folder: Path) -> None:
    metadata = read_metadata(folder / ".metadata")
    key = "decoder.final_layernorm.weight"
    entry = metadata.state_dict_metadata[key]
    assert isinstance(entry, TensorStorageMetadata)
    entry.size = entry.chunks[0].sizes = torch.Size([8, 8])
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert any(f"{key} is not torch.float32" in damage for damage in damages(folder))


def test_parts_that_were_never_saved_are_found(folder: Path) -> None:
    metadata = read_metadata(folder / ".metadata")
    key = "decoder.final_layernorm.weight"
    entry = metadata.state_dict_metadata[key]
    assert isinstance(entry, TensorStorageMetadata)
    entry.size = torch.Size([65])
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert f".metadata: {key} has 64 of 65 elements" in damages(folder)


def test_data_outside_of_the_checkpoint_is_refused(folder: Path) -> None:
    metadata = read_metadata(folder / ".metadata")
    next(iter(metadata.storage_data.values())).relative_path = "../secret"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert damages(folder) == [".metadata: the path ../secret"]


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        verify(tmp_path)


def test_sums_of_files_already_known_are_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    checksums.record(tmp_path, {"a": FileSum(3, "known")})
    sums = checksums.recorded(tmp_path)
    assert sums is not None
    assert sums["a"] == FileSum(3, "known")
    assert sums["b"].sha256.startswith("e3b0c442"), "SHA-256 of nothing"
    assert json.loads((tmp_path / checksums.FILE_NAME).read_text())["algorithm"] == "sha256"


def test_the_command_fails_and_names_the_shard(summed: Path) -> None:
    assert CliRunner().invoke(app, ["checkpoint", "verify", str(summed.parent)]).exit_code == 0
    alter(summed / SHARD, 3000)
    result = CliRunner().invoke(app, ["checkpoint", "verify", str(summed.parent)])
    assert result.exit_code == 2
    assert f"damaged: {SHARD}: other content" in result.output


def test_the_command_shows_what_is_inside(summed: Path) -> None:
    result = CliRunner().invoke(app, ["checkpoint", "show", str(summed.parent)])
    assert result.exit_code == 0
    for key, shape in TorchDistReader(summed).shapes.items():
        assert any(
            line.split()[0] == key and " x ".join(map(str, shape)) in line
            for line in result.output.splitlines()
            if line
        )
    assert "weights without the state of a training run" in result.output
