"""Megatron-Core's `torch_dist` checkpoints, written and read one slice at a time.

A slice is a box of a global tensor, given by its offsets and its shape. No process group is used,
and no more than one slice (reading: and the stored chunk it lies in) is in memory.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult

from megatron_soaes.accelerator.safe_pickle import SafeReader
from megatron_soaes.errors import UserError

FILE_BYTES = 4 * 2**30
"""Slices go to a new file once this much is in the current one."""


class TorchDistWriter:
    """Writes one checkpoint into an existing empty directory; a context manager.

    On a clean exit the metadata that makes it loadable with `megatron.core.dist_checkpointing.load`
    is written; after an exception the directory is not a checkpoint.
    """

    def __init__(self, directory: Path, common: Mapping[str, Any]) -> None:
        self._directory = directory
        self._common = dict(common)
        self._entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self._results: list[WriteResult] = []
        self._files = 0
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> TorchDistWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if kind is None:
            metadata = Metadata(dict(self._entries))
            FileSystemWriter(self._directory).finish(metadata, [self._results])
            torch.save(self._common, self._directory / "common.pt")
            save_config(CheckpointingConfig("torch_dist", 1), str(self._directory))

    def write(
        self, key: str, global_shape: Sequence[int], offsets: Sequence[int], tensor: Tensor
    ) -> None:
        """Store `tensor` as the box of `key` at `offsets`; all boxes of a key have one dtype."""
        entry = self._entries.setdefault(
            key,
            TensorStorageMetadata(
                TensorProperties(dtype=tensor.dtype), torch.Size(global_shape), []
            ),
        )
        assert isinstance(entry, TensorStorageMetadata)
        index = MetadataIndex(key, offsets, len(entry.chunks))
        entry.chunks.append(ChunkStorageMetadata(torch.Size(offsets), tensor.shape))
        self._append(index, _own_storage(tensor))

    def write_object(self, key: str, value: object) -> None:
        """Store `value`, which is no tensor that layouts share, as the object `key`."""
        self._entries[key] = BytesStorageMetadata()
        # Megatron-Core expects a list: of the objects that one process gives the same key.
        self._append(MetadataIndex(key), [value])

    def _append(self, index: MetadataIndex, value: object) -> None:
        stream = self._current_file()
        start = stream.tell()
        torch.save(value, stream)
        length = stream.tell() - start
        stored = _StorageInfo(Path(stream.name).name, start, length)
        self._results.append(WriteResult(index, length, stored))

    def _current_file(self) -> IO[bytes]:
        if self._stream is not None and self._stream.tell() >= FILE_BYTES:
            self._stream.close()
            self._stream = None
        if self._stream is None:
            self._stream = (self._directory / f"__0_{self._files}.distcp").open("wb")
            self._files += 1
        return self._stream


def _own_storage(tensor: Tensor) -> Tensor:
    """torch.save writes the whole storage behind a view, so give a view its own."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


class TorchDistReader:
    """Reads boxes of the tensors of a checkpoint, whatever layout wrote it.

    With a `prefix` only tensors whose keys begin with it are there, by the rest of their keys.
    """

    def __init__(self, directory: Path, prefix: str = "") -> None:
        """Raises UserError when `directory` is not a complete torch_dist checkpoint."""
        self.directory = directory
        self._prefix = prefix
        for name in ("metadata.json", ".metadata"):
            if not (directory / name).is_file():
                raise UserError(
                    directory, f"no {name}", "a complete torch_dist checkpoint",
                    "Give a checkpoint that was saved to its end.",
                )  # fmt: skip
        self._reader = SafeReader(directory)
        metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._tensors = {
            key.removeprefix(prefix): entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and key.startswith(prefix)
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Global shapes of all tensors, by key."""
        return {key: tuple(entry.size) for key, entry in self._tensors.items()}

    def dtype(self, key: str) -> torch.dtype:
        """The dtype of the tensor `key`."""
        return self._tensors[key].properties.dtype

    def read_slice(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The box of `key` at `offsets`, of shape `sizes`, on the CPU.

        Raises UserError when the stored chunks do not cover it or cannot be read.
        """
        result = torch.empty(tuple(sizes), dtype=self.dtype(key))
        box = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        stored_key = self._prefix + key
        items = create_read_items_for_chunk_list(stored_key, self._tensors[key], [box])
        if sum(math.prod(item.lengths) for item in items) != result.numel():
            raise UserError(
                f"{self.directory}: {key}", "parts that were never saved",
                f"all of {list(sizes)} at {list(offsets)}", "Use another checkpoint.",
            )  # fmt: skip
        try:
            self._reader.read_data(LoadPlan(items), _Into(result)).wait()
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            raise UserError(
                f"{self.directory}: {key}", f"unreadable data ({error})", "the saved tensor",
                "The checkpoint is damaged; use another one.",
            ) from error  # fmt: skip
        return result


class _Into(DefaultLoadPlanner):
    """Directs everything that is read into one tensor."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        boxed = self._target
        for axis, (start, length) in enumerate(
            zip(read_item.dest_offsets, read_item.lengths, strict=True)
        ):
            boxed = boxed.narrow(axis, start, length)
        return boxed

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing to do: the tensor is a view of the target."""
