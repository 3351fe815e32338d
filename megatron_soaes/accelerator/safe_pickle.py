"""Read the pickles inside a checkpoint without running what a stranger put into them.

A pickle can name any function and have it called when it is opened. Three parts of a `torch_dist`
checkpoint are pickles: `.metadata`, `common.pt`, and the objects among its shards (the scaling
factors of FP8 layers). Here they may only be made of the types that checkpoints are made of;
anything else is refused before it is looked up.
"""

from __future__ import annotations

import functools
import pickle
import re
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from megatron_soaes.errors import UserError

METADATA_TYPES = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {
        "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType",
    },
}  # fmt: skip
"""By module; the dtypes in `torch` are allowed too."""


def read_metadata(file: Path) -> Metadata:
    """The content of a `.metadata`.

    Raises UserError when it is missing or damaged, or names a type that does not belong there.
    """
    try:
        with file.open("rb") as stream:
            metadata = _MetadataUnpickler(stream, file).load()
    except OSError as error:
        raise _unreadable(file, error) from None
    # A damaged pickle may raise almost anything while it is put together.
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise _unreadable(file, error) from error
    if not isinstance(metadata, Metadata):
        raise _unreadable(file, TypeError(f"it holds a {type(metadata).__name__}"))
    if getattr(metadata, "storage_meta", None) is None:
        metadata.storage_meta = StorageMeta()
    return metadata


def read_common(file: Path) -> dict[str, Any]:
    """The content of a `common.pt`, tensors on the CPU.

    The types allowed are torch's for weights and those that Megatron-Core registers, such as
    `argparse.Namespace`. Raises UserError as `read_metadata` does.
    """
    content = load_object(file, file)
    if not isinstance(content, dict):
        raise _unreadable(file, TypeError(f"it holds a {type(content).__name__}"))
    return content


def load_object(source: Path | IO[bytes], where: object) -> Any:
    """What `torch.save` wrote into `source`; `where` is named in errors. Raises UserError."""
    import megatron.core  # noqa: F401 - registers its types as safe

    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(where, error) from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise _unreadable(where, error) from error
        raise _refused(where, found.group(1)) from None
    except (EOFError, RuntimeError, ValueError, KeyError) as error:
        raise _unreadable(where, error) from error


class SafeReader(FileSystemReader):
    """torch's reader of checkpoint files, with `.metadata` read safely, and once."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata of the checkpoint; raises UserError like the function of this module."""
        if self._metadata is None:
            self._metadata = read_metadata(Path(self.path) / ".metadata")
            assert self._metadata.storage_meta is not None
            self._metadata.storage_meta.load_id = self.load_id
        return self._metadata


@functools.cache
def install() -> None:
    """Make Megatron-Core load checkpoints through this module.

    Megatron-Core 0.16.1 opens `.metadata` with `pickle.load`, and objects among the shards with
    `torch.load(..., weights_only=False)`: either runs whatever code the file asks for. `common.pt`
    it opens with torch's default, which an environment variable makes unsafe; `read_common` goes
    before it.
    """
    from megatron.core.dist_checkpointing.strategies import torch as strategies

    strategies._get_filesystem_reader = lambda path, cache_metadata=False: SafeReader(path)

    def load_bytes(self: Any, read_item: ReadItem, value: IO[bytes]) -> None:
        key = read_item.dest_index.fqn
        # As the method it replaces does: `state_dict` is a flat copy that is thrown away.
        set_element(self.original_state_dict, self.mappings[key], load_object(value, key))

    strategies.MCoreLoadPlanner.load_bytes = load_bytes


class _MetadataUnpickler(pickle.Unpickler):
    def __init__(self, stream: IO[bytes], file: Path) -> None:
        super().__init__(stream)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and name not in METADATA_TYPES.get(module, ()):
            raise _refused(self._file, f"{module}.{name}")
        return super().find_class(module, name)


def _refused(where: object, name: str) -> UserError:
    return UserError(
        where, f"the global {name}", "only the types that checkpoints are made of",
        "Opening such a file could run any code, so it was not opened. Get the checkpoint again "
        "from a source that you trust.",
    )  # fmt: skip


def _unreadable(where: object, error: Exception) -> UserError:
    return UserError(
        where, f"unreadable content ({error})", "what a checkpoint's save wrote",
        "The checkpoint is incomplete or damaged; use another one.",
    )  # fmt: skip
