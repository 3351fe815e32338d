"""Safetensors files: written as a stream, read lazily, and refused when damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_soaes.checkpoint.hf_files import (
    INDEX_FILE,
    HFWeights,
    SafetensorsWriter,
    copy_other_files,
)
from megatron_soaes.errors import UserError
from tests.checkpoint.tiny import make_model, tensors_of

TENSORS = {
    "a": torch.randn(4, 3),
    "b": torch.randn(5).to(torch.bfloat16),
    "c": torch.randn(2, 2).to(torch.float16),
}
PLAN = {name: (tuple(t.shape), t.dtype) for name, t in TENSORS.items()}


def write(directory: Path, shard_bytes: int) -> list[str]:
    writer = SafetensorsWriter(directory, PLAN, shard_bytes)
    for name, tensor in TENSORS.items():
        writer.write(name, tensor)
    writer.close()
    return writer.files


def test_a_small_model_is_one_file_that_safetensors_reads(tmp_path: Path) -> None:
    assert write(tmp_path, 1000) == ["model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], t) for name, t in TENSORS.items())
    assert all(loaded[name].dtype == t.dtype for name, t in TENSORS.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_bigger_one_is_cut_into_shards_and_indexed(tmp_path: Path) -> None:
    files = write(tmp_path, 50)
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((tmp_path / INDEX_FILE).read_text(encoding="utf-8"))
    assert index["weight_map"] == {"a": files[0], "b": files[1], "c": files[1]}
    assert index["metadata"] == {"total_size": 48 + 10 + 8}
    assert all(torch.equal(t, TENSORS[name]) for name, t in tensors_of(tmp_path).items())
    source = HFWeights(tmp_path)
    assert all(torch.equal(source.read(name), t) for name, t in TENSORS.items())


def test_a_tensor_above_the_limit_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert len(write(tmp_path, 1)) == 3
    assert HFWeights(tmp_path).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    "wrong", [torch.ones(3, 4), torch.ones(4, 3).double()], ids=["shape", "dtype"]
)
def test_what_was_not_planned_is_not_written(tmp_path: Path, wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="not the next of the plan"):
        SafetensorsWriter(tmp_path, PLAN, 1000).write("a", wrong)


def test_what_was_planned_must_be_written(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path, PLAN, 1000)
    writer.write("a", TENSORS["a"])
    with pytest.raises(ValueError, match="b was never written"):
        writer.close()


def test_everything_but_weights_and_hidden_files_is_carried(tmp_path: Path) -> None:
    source = make_model(tmp_path / "hf", shard_size="20KB")
    (source / ".cache").mkdir()
    (source / "original").mkdir()
    (source / "original" / "tokenizer.model").write_text("t", encoding="utf-8")
    (source / "pytorch_model.bin").write_bytes(b"")
    copy_other_files(source, tmp_path / "copy")
    names = {str(p.relative_to(tmp_path / "copy")) for p in (tmp_path / "copy").rglob("*")}
    assert names == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "original",
        "original/tokenizer.model",
    }


def truncate(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def break_index(folder: Path) -> None:
    (folder / INDEX_FILE).write_text('{"weight_map": ["a"]}', encoding="utf-8")


def promise_too_much(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    index["weight_map"]["d"] = "model-00001-of-00002.safetensors"
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")


def quantise(folder: Path) -> None:
    save_file({"a": torch.zeros(4, dtype=torch.int8)}, folder / "model-00001-of-00002.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, r"model-00002-of-00002.safetensors: found a damaged file"),
    "a missing shard": (
        lambda d: (d / "model-00002-of-00002.safetensors").unlink(),
        r"index.json: found model-00002-of-00002.safetensors, which is not there",
    ),
    "a broken index": (break_index, r"index.json: found no readable weight_map"),
    "a missing tensor": (promise_too_much, r"model-00001-of-00002.safetensors: found no tensor d"),
    "quantised": (quantise, r"model-00001-of-00002.safetensors: a: found dtype I8"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_its_file(tmp_path: Path, damage: str) -> None:
    act, message = DAMAGE[damage]
    write(tmp_path, 50)
    act(tmp_path)
    with pytest.raises(UserError, match=message):
        HFWeights(tmp_path)


@pytest.mark.parametrize(
    ("files", "found"),
    [(["pytorch_model.bin", "config.json"], "only pytorch_model.bin"), ([], "no weights")],
)
def test_weights_in_another_format_are_refused(
    tmp_path: Path, files: list[str], found: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"found {found}; expected model.safetensors"):
        HFWeights(tmp_path)
