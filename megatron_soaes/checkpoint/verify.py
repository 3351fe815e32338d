"""Is a checkpoint what was saved? Needs no model, no layout and no process group."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_soaes import files
from megatron_soaes.accelerator.safe_pickle import load_object, read_common, read_metadata
from megatron_soaes.checkpoint import checksums, directory, trainer_state
from megatron_soaes.checkpoint.checksums import FileSum
from megatron_soaes.checkpoint.stored_items import StoredItem, stored_items
from megatron_soaes.errors import UserError


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was saved."""

    file: str
    found: str

    def __str__(self) -> str:
        return f"{self.file}: {self.found}"


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found."""

    directory: Path
    files: int
    bytes: int
    has_checksums: bool
    """Without them only the structure was checked: changed numbers go unnoticed."""
    damages: list[Damage]

    def __str__(self) -> str:
        lines = [f"{self.directory}: {self.files} files, {self.bytes:,} bytes"]
        if not self.has_checksums:
            lines += [
                "  no checksums were recorded when it was saved: only its structure was checked, "
                "changed numbers would go unnoticed"
            ]
        lines += [f"  damaged: {damage}" for damage in self.damages]
        return "\n".join(lines if self.damages else [*lines, "  no damage found"])


def verify(path: Path, iteration: int | None = None) -> VerifyReport:
    """Compare every file with the SHA-256 recorded at the save, and check the structure.

    `path` is a checkpoint root (of which `iteration`, by default the newest, is meant) or the
    folder of one checkpoint. Structure: the metadata is readable and safe, the chunks of each
    tensor fill it, and every byte range it names exists; in files without a recorded sum each range
    must also hold a tensor of the right shape and dtype. Raises UserError when there is no
    checkpoint at all.
    """
    folder = directory.resolve(path, iteration)
    damages: list[Damage] = []
    sums = None
    try:
        sums = checksums.recorded(folder)
    except UserError as error:
        damages.append(Damage(checksums.FILE_NAME, error.found))
    damages += _against_sums(folder, sums or {})
    known = {damage.file for damage in damages}
    damages += _structure(folder, known, trusted=set(sums or {}) - known)
    present = [file for file in folder.iterdir() if file.is_file()]
    size = sum(file.stat().st_size for file in present)
    return VerifyReport(folder, len(present), size, sums is not None, damages)


def _against_sums(folder: Path, sums: dict[str, FileSum]) -> Iterator[Damage]:
    for name, wanted in sorted(sums.items()):
        file = folder / name
        if not file.is_file():
            yield Damage(name, "missing")
        elif file.stat().st_size != wanted.bytes:
            yield Damage(name, f"{file.stat().st_size} bytes; {wanted.bytes} were saved")
        elif files.sha256_file(file) != wanted.sha256:
            yield Damage(name, "other content than was saved (its SHA-256 differs)")


def _structure(folder: Path, known: set[str], trusted: set[str]) -> Iterator[Damage]:
    """Damages in files not `known` to be damaged; in `trusted` ones tensors are not opened."""
    checks = {
        "metadata.json": _check_format,
        "common.pt": lambda folder: read_common(folder / "common.pt"),
        trainer_state.FILE_NAME: _check_trainer_state,
    }
    for name, check in checks.items():
        try:
            if name not in known:
                check(folder)
        except UserError as error:
            yield Damage(name, error.found)
    if ".metadata" in known:
        return
    try:
        metadata = read_metadata(folder / ".metadata")
        items = list(stored_items(metadata, folder / ".metadata"))
    except UserError as error:
        yield Damage(".metadata", error.found)
        return
    yield from _uncovered(metadata)
    items.sort(key=lambda item: (item.file, item.start))
    for name, group in groupby(items, key=lambda item: item.file):
        if name not in known:
            yield from _shard(folder / name, list(group), decode=name not in trusted)


def _check_format(folder: Path) -> None:
    file = folder / "metadata.json"
    expected = "the format torch_dist"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["sharded_backend"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(file, f"unreadable content ({error})", expected, "") from None
    if found != "torch_dist":
        raise UserError(file, f"the format {found}", expected, "")


def _check_trainer_state(folder: Path) -> None:
    if (folder / trainer_state.FILE_NAME).exists():
        trainer_state.TrainerState.read(folder)


def _uncovered(metadata: Metadata) -> Iterator[Damage]:
    for key, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            filled = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
            if filled != math.prod(entry.size):
                yield Damage(".metadata", f"{key} has {filled} of {math.prod(entry.size)} elements")


def _shard(file: Path, items: list[StoredItem], *, decode: bool) -> Iterator[Damage]:
    if not file.is_file():
        yield Damage(file.name, f"missing; it holds {items[0].key} and {len(items) - 1} more")
        return
    size = file.stat().st_size
    with file.open("rb") as stream:
        for item in items:
            end = item.start + item.length
            if end > size:
                yield Damage(file.name, f"{size} bytes; {item.key} goes to byte {end}")
            elif decode and (wrong := _decoded(item, item.read(stream))):
                yield Damage(file.name, f"{item.key} {wrong}")


def _decoded(item: StoredItem, content: bytes) -> str | None:
    """What is wrong with an item's bytes, None when nothing is."""
    try:
        found = load_object(io.BytesIO(content), item.key)
    except UserError as error:
        return f"has {error.found}"
    if item.tensor is None or item.chunk is None:
        return None
    wanted = (item.chunk.sizes, item.tensor.properties.dtype)
    if not isinstance(found, torch.Tensor) or (found.shape, found.dtype) != wanted:
        return f"is not {wanted[1]} of shape {list(wanted[0])}"
    return None
