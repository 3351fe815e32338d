"""torch_dist checkpoints written and read slice by slice."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch import Tensor

from megatron_soaes.checkpoint import torch_dist
from megatron_soaes.checkpoint.torch_dist import TorchDistReader, TorchDistWriter
from megatron_soaes.errors import UserError


def write_in_rows(directory: Path, tensor: Tensor, cuts: list[int]) -> None:
    """Store `tensor` as "w", cut before the rows named."""
    with TorchDistWriter(directory, {"iteration": 0}) as writer:
        bounds = [0, *cuts, tensor.shape[0]]
        for start, end in pairwise(bounds):
            writer.write("w", tensor.shape, [start, 0], tensor[start:end])


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_box_of_any_chunks_is_read(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1)))) if rows > 1 else []
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    height = data.draw(st.integers(1, rows - top))
    width = data.draw(st.integers(1, columns - left))
    tensor = torch.randn(rows, columns)
    with tempfile.TemporaryDirectory() as folder:
        write_in_rows(Path(folder), tensor, cuts)
        box = TorchDistReader(Path(folder)).read_slice("w", [top, left], [height, width])
    assert torch.equal(box, tensor[top : top + height, left : left + width])


@pytest.mark.usefixtures("one_process")
def test_megatron_core_loads_it(tmp_path: Path) -> None:
    tensor = torch.randn(6, 4).to(torch.bfloat16)
    write_in_rows(tmp_path, tensor, [2, 3])
    assert torch.equal(dist_checkpointing.load_plain_tensors(str(tmp_path))["w"], tensor)
    assert dist_checkpointing.load_common_state_dict(str(tmp_path))["iteration"] == 0


def test_big_checkpoints_are_spread_over_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_dist, "FILE_BYTES", 1)
    tensor = torch.randn(6, 4)
    write_in_rows(tmp_path, tensor, [2, 4])
    assert sorted(p.name for p in tmp_path.glob("*.distcp")) == [
        f"__0_{i}.distcp" for i in range(3)
    ]
    assert torch.equal(TorchDistReader(tmp_path).read_slice("w", [0, 0], [6, 4]), tensor)


def test_a_view_is_stored_without_what_it_is_a_view_of(tmp_path: Path) -> None:
    big = torch.zeros(1000, 1000)
    with TorchDistWriter(tmp_path, {}) as writer:
        writer.write("w", [1, 1000], [0, 0], big[:1])
    assert (tmp_path / "__0_0.distcp").stat().st_size < 10_000


def test_an_interrupted_write_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TorchDistWriter(tmp_path, {}) as writer:
        writer.write("w", [2], [0], torch.zeros(1))
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r"found no metadata.json"):
        TorchDistReader(tmp_path)


def test_parts_that_were_never_saved_are_an_error(tmp_path: Path) -> None:
    with TorchDistWriter(tmp_path, {}) as writer:
        writer.write("w", [3, 2], [0, 0], torch.zeros(2, 2))
    with pytest.raises(UserError, match=r"w: found parts that were never saved"):
        TorchDistReader(tmp_path).read_slice("w", [1, 0], [2, 2])


def test_a_truncated_shard_is_an_error_that_names_the_tensor(tmp_path: Path) -> None:
    write_in_rows(tmp_path, torch.randn(6, 4), [])
    shard = tmp_path / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(UserError, match=r"w: found unreadable data"):
        TorchDistReader(tmp_path).read_slice("w", [0, 0], [6, 4])


def test_a_prefix_selects_and_shortens_keys(tmp_path: Path) -> None:
    with TorchDistWriter(tmp_path, {}) as writer:
        writer.write("module.w", [2], [0], torch.tensor([1.0, 2.0]))
        writer.write("optimizer.w", [1], [0], torch.zeros(1))
    reader = TorchDistReader(tmp_path, prefix="module.")
    assert reader.shapes == {"w": (2,)}
    assert torch.equal(reader.read_slice("w", [1], [1]), torch.tensor([2.0]))


@pytest.mark.usefixtures("one_process")
def test_megatron_core_finds_objects_by_their_places(tmp_path: Path) -> None:
    with TorchDistWriter(tmp_path, {}) as writer:
        writer.write_object("linear._extra_state/shard_0_2", "of layer 0")
        writer.write_object("linear._extra_state/shard_1_2", None)
    wanted = {
        str(layer): ShardedObject("linear._extra_state", "not read yet", (2,), (layer,))
        for layer in range(2)
    }
    loaded = dist_checkpointing.load(wanted, str(tmp_path))
    assert (loaded["0"], loaded["1"]) == ("of layer 0", None)
