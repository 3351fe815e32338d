"""Rewrite a checkpoint with other files: few large ones, weights only, another dtype.

Every layout loads every checkpoint, so this is never needed to change the layout. It is for storing
and handing over: a run of 64 processes leaves 128 files, most of their bytes optimizer state.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import WriteResult

from megatron_soaes import files
from megatron_soaes.accelerator.safe_pickle import load_object, read_common, read_metadata
from megatron_soaes.checkpoint import checksums, directory, trainer_state
from megatron_soaes.checkpoint.stored_items import StoredItem, stored_items
from megatron_soaes.checkpoint.torch_dist import FILE_BYTES
from megatron_soaes.checkpoint.verify import verify
from megatron_soaes.errors import UserError

OPTIMIZER_PREFIX = "optimizer."
TRAINING_ONLY = ("optimizer", "opt_param_scheduler")


@dataclass(frozen=True)
class ReshardReport:
    """What was written."""

    directory: Path
    """Folder of the new checkpoint, below the new root."""
    files: int
    """Shard files."""
    bytes: int
    """Of these."""


def reshard(
    path: Path,
    out_root: Path,
    *,
    iteration: int | None = None,
    weights_only: bool = False,
    dtype: torch.dtype | None = None,
    file_bytes: int = FILE_BYTES,
) -> ReshardReport:
    """Write a checkpoint (as in `verify`) under a new root, in files of about `file_bytes`.

    With `weights_only` the optimizer and the trainer state are left out; `dtype` then converts the
    weights. Everything else is copied bit for bit, and the new files get checksums. The source is
    verified first. Memory is bounded by one stored chunk. `out_root` appears whole or not at all.
    Raises UserError when the source is damaged, when `out_root` exists, and for a `dtype` without
    `weights_only`: the optimizer keeps weights of its own, which would no longer agree.
    """
    if dtype is not None and not weights_only:
        raise UserError(
            "dtype", str(dtype), "the stored one for a checkpoint with optimizer state",
            "Convert the weights only.",
        )  # fmt: skip
    if out_root.exists():
        raise UserError(
            out_root, "something already there", "a path that does not exist",
            "Choose another path, or remove what is there.",
        )  # fmt: skip
    report = verify(path, iteration)
    if report.damages:
        raise UserError(
            report.directory / report.damages[0].file, report.damages[0].found,
            "an undamaged checkpoint", "Use another one.",
        )  # fmt: skip
    source = report.directory
    common = _common(source, weights_only, dtype)
    with files.atomic_directory(out_root) as root:
        target = directory.iteration_directory(root, int(common.get("iteration", 0)))
        target.mkdir()
        _copy_shards(source, target, weights_only, dtype, file_bytes)
        torch.save(common, target / "common.pt")
        save_config(CheckpointingConfig("torch_dist", 1), str(target))
        if not weights_only and (source / trainer_state.FILE_NAME).exists():
            shutil.copy(source / trainer_state.FILE_NAME, target)
        checksums.record(target, {})
        if (source.parent / directory.HF_FILES).is_dir():
            directory.carry_hf_files(source.parent, root)
        directory.move_pointer(root, int(common.get("iteration", 0)))
    written = out_root / target.name
    sizes = [file.stat().st_size for file in written.glob("*.distcp")]
    return ReshardReport(written, len(sizes), sum(sizes))


def _common(source: Path, weights_only: bool, dtype: torch.dtype | None) -> dict[str, Any]:
    common = read_common(source / "common.pt")
    if weights_only:
        common = {name: value for name, value in common.items() if name not in TRAINING_ONLY}
        if isinstance(common.get("args"), argparse.Namespace):
            common["args"].no_save_optim = True
            if dtype is not None:
                common["args"].params_dtype = dtype
                common["args"].bf16 = dtype == torch.bfloat16
    return common


def _copy_shards(
    source: Path, target: Path, weights_only: bool, dtype: torch.dtype | None, file_bytes: int
) -> None:
    metadata = read_metadata(source / ".metadata")
    kept: dict[str, Any] = {
        key: _converted_entry(entry, dtype)
        for key, entry in metadata.state_dict_metadata.items()
        if not (weights_only and key.startswith(OPTIMIZER_PREFIX))
    }
    results = []
    with ExitStack() as stack:
        shards = _Shards(target, file_bytes, stack)
        for item, content in _contents(source, metadata):
            if item.key in kept:
                results.append(shards.add(item, _converted(item, content, dtype)))
    FileSystemWriter(target).finish(Metadata(kept), [results])


def _contents(source: Path, metadata: Metadata) -> Iterator[tuple[StoredItem, bytes]]:
    """Every item with its bytes, in the order of keys."""
    with ExitStack() as stack:
        streams: dict[str, IO[bytes]] = {}
        for item in stored_items(metadata, source / ".metadata"):
            if item.file not in streams:
                streams[item.file] = stack.enter_context((source / item.file).open("rb"))
            yield item, item.read(streams[item.file])


class _Shards:
    """Appends items to files; a new one is begun where the limit would be passed."""

    def __init__(self, target: Path, file_bytes: int, stack: ExitStack) -> None:
        self._target = target
        self._file_bytes = file_bytes
        self._stack = stack
        self._count = 0
        self._stream: IO[bytes] | None = None

    def add(self, item: StoredItem, content: bytes) -> WriteResult:
        if self._stream is None or self._stream.tell() + len(content) > self._file_bytes:
            path = self._target / f"__0_{self._count}.distcp"
            self._stream = self._stack.enter_context(path.open("wb"))
            self._count += 1
        place = _StorageInfo(Path(self._stream.name).name, self._stream.tell(), len(content))
        self._stream.write(content)
        return WriteResult(item.index, len(content), place)


def _converted_entry(entry: Any, dtype: torch.dtype | None) -> Any:
    if dtype is None or not isinstance(entry, TensorStorageMetadata):
        return entry
    return replace(entry, properties=replace(entry.properties, dtype=dtype))


def _converted(item: StoredItem, content: bytes, dtype: torch.dtype | None) -> bytes:
    if dtype is None or item.tensor is None or item.tensor.properties.dtype == dtype:
        return content
    stream = io.BytesIO()
    torch.save(load_object(io.BytesIO(content), item.key).to(dtype), stream)
    return stream.getvalue()
