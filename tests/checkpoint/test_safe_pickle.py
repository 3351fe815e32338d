"""Pickles that would run code are refused wherever a checkpoint is opened, and run nothing."""

from __future__ import annotations

import argparse
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject

from megatron_soaes.accelerator import safe_pickle
from megatron_soaes.checkpoint.directory import iteration_directory
from megatron_soaes.checkpoint.distributed import load_weights
from megatron_soaes.checkpoint.export_hf import export_hf
from megatron_soaes.checkpoint.show import show
from megatron_soaes.checkpoint.torch_dist import TorchDistReader, TorchDistWriter
from megatron_soaes.checkpoint.verify import verify
from megatron_soaes.errors import UserError


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._command = f"touch {trace}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self._command,)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that a bomb makes; it must not be there at the end of a test."""
    return tmp_path / "it-ran"


def test_the_bomb_works(trace: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()


def plant(directory: Path, name: str, trace: Path) -> None:
    """Put a bomb into one of the pickles."""
    if name == "common.pt":
        torch.save({"iteration": 0, "args": Bomb(trace)}, directory / name)
    else:
        metadata = safe_pickle.read_metadata(directory / name)
        metadata.planner_data = Bomb(trace)
        (directory / name).write_bytes(pickle.dumps(metadata))


OPENERS: dict[str, tuple[set[str], Callable[[Path, Path], object]]] = {
    "show": ({"common.pt", ".metadata"}, lambda root, out: show(root)),
    "read slices": ({".metadata"}, lambda root, out: TorchDistReader(iteration_directory(root, 0))),
    "export": ({".metadata"}, export_hf),
    "load": ({"common.pt", ".metadata"}, lambda root, out: load_weights(root, 0, [])),
}
"""Which of the pickles each of them opens."""


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("opener", "name"), [(o, name) for o, (names, _) in OPENERS.items() for name in sorted(names)]
)
def test_a_planted_pickle_is_refused_and_named(
    checkpoint_root: Path, tmp_path: Path, trace: Path, opener: str, name: str
) -> None:
    file = iteration_directory(checkpoint_root, 0) / name
    plant(file.parent, name, trace)
    with pytest.raises(UserError, match=r"found the global posix\.system") as caught:
        OPENERS[opener][1](checkpoint_root, tmp_path / "out")
    assert str(file) in caught.value.where
    assert not trace.exists()


@pytest.mark.parametrize("name", ["common.pt", ".metadata"])
def test_verify_reports_it(checkpoint_root: Path, trace: Path, name: str) -> None:
    plant(iteration_directory(checkpoint_root, 0), name, trace)
    found = [str(damage) for damage in verify(checkpoint_root).damages]
    assert found == [f"{name}: the global posix.system"]
    assert not trace.exists()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", ["common.pt", ".metadata"])
def test_megatron_core_itself_no_longer_runs_it(
    checkpoint_root: Path, trace: Path, name: str
) -> None:
    directory = iteration_directory(checkpoint_root, 0)
    plant(directory, name, trace)
    with pytest.raises((UserError, pickle.UnpicklingError)):
        dist_checkpointing.load_plain_tensors(str(directory))
        dist_checkpointing.load_common_state_dict(str(directory))
    assert not trace.exists()


@pytest.mark.usefixtures("one_process")
def test_an_object_among_the_shards_is_refused_and_named(tmp_path: Path, trace: Path) -> None:
    def state(content: Any) -> dict[str, Any]:
        return {"a": ShardedObject("scales", content, (1,), (0,))}

    scales = io.BytesIO(b"as Transformer Engine keeps them")
    for name, content in (("fine", [1.0, scales]), ("planted", Bomb(trace))):
        (tmp_path / name).mkdir()
        dist_checkpointing.save(state(content), str(tmp_path / name))
    loaded = dist_checkpointing.load(state(None), str(tmp_path / "fine"))
    assert loaded["a"][1].getvalue() == scales.getvalue()
    # A failed read raises CheckpointException, which derives from BaseException.
    with pytest.raises(BaseException, match=r"scales.*found the global posix\.system"):
        dist_checkpointing.load(state(None), str(tmp_path / "planted"))
    assert not trace.exists()
    assert "scales" in str(verify(tmp_path / "planted").damages[0])
    assert not trace.exists()


def test_what_megatron_lm_saves_is_read(tmp_path: Path) -> None:
    args = argparse.Namespace(num_layers=2, params_dtype=torch.bfloat16, spec=None)
    with TorchDistWriter(tmp_path, {"args": args, "iteration": 3}) as writer:
        writer.write("w", [2], [0], torch.ones(2))
    assert safe_pickle.read_common(tmp_path / "common.pt")["args"] == args
    assert "w" in safe_pickle.read_metadata(tmp_path / ".metadata").state_dict_metadata


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:100]),
        lambda file: file.write_bytes(b"no pickle"),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(pickle.dumps([1])),
        Path.unlink,
    ],
)
@pytest.mark.parametrize("name", ["common.pt", ".metadata"])
def test_a_damaged_pickle_is_an_error_that_names_the_file(
    checkpoint_root: Path, name: str, damage: Callable[[Path], object]
) -> None:
    file = iteration_directory(checkpoint_root, 0) / name
    damage(file)
    with pytest.raises(UserError) as caught:
        show(checkpoint_root)
    assert str(file) == caught.value.where
