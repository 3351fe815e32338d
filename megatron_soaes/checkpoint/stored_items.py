"""What lies where in the shard files of a `torch_dist` checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from megatron_soaes.errors import UserError


@dataclass(frozen=True)
class StoredItem:
    """One chunk of a tensor, or one object: a byte range that `torch.load` reads by itself."""

    index: MetadataIndex
    file: str
    start: int
    length: int
    tensor: TensorStorageMetadata | None
    """None for an object."""
    chunk: ChunkStorageMetadata | None

    @property
    def key(self) -> str:
        """Name of the tensor or object it belongs to."""
        return str(self.index.fqn)

    def read(self, stream: IO[bytes]) -> bytes:
        """Its bytes, from the open file it lies in; may be fewer in a truncated file."""
        stream.seek(self.start)
        return stream.read(self.length)


def stored_items(metadata: Metadata, where: Path) -> Iterator[StoredItem]:
    """All items, by key and position; `where` is named in errors.

    Raises UserError for a chunk that the metadata does not place in a file, and for a file outside
    of the checkpoint.
    """
    for key, entry in sorted(metadata.state_dict_metadata.items()):
        if isinstance(entry, TensorStorageMetadata):
            for position, chunk in enumerate(entry.chunks):
                index = MetadataIndex(key, chunk.offsets, position)
                yield _item(metadata, where, index, entry, chunk)
        else:
            yield _item(metadata, where, MetadataIndex(key), None, None)


def _item(
    metadata: Metadata,
    where: Path,
    index: MetadataIndex,
    tensor: TensorStorageMetadata | None,
    chunk: ChunkStorageMetadata | None,
) -> StoredItem:
    info = metadata.storage_data.get(index)
    if info is None or Path(info.relative_path).name != info.relative_path:
        found = "no place of it" if info is None else f"the path {info.relative_path}"
        raise UserError(
            f"{where}: {index.fqn}", found, "a file of the checkpoint for every part",
            "The checkpoint is damaged; use another one.",
        )  # fmt: skip
    return StoredItem(index, info.relative_path, info.offset, info.length, tensor, chunk)
