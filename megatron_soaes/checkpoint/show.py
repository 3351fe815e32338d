"""What is in a checkpoint, for people."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_soaes.accelerator.safe_pickle import read_common, read_metadata
from megatron_soaes.checkpoint import checksums, directory, trainer_state
from megatron_soaes.checkpoint.trainer_state import TrainerState


@dataclass(frozen=True)
class StoredTensor:
    """One global tensor."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    chunks: int
    """Parts it is stored in."""


@dataclass(frozen=True)
class Contents:
    """What `show` found."""

    directory: Path
    tensors: list[StoredTensor]
    objects: int
    """Things that are not tensors, such as the scaling factors of FP8 layers."""
    files: dict[str, int]
    """Bytes by name."""
    state: TrainerState | None
    """None for weights without a training run."""
    arguments: dict[str, Any]
    """Megatron-LM's `args`; empty when there are none."""
    has_checksums: bool

    def __str__(self) -> str:
        return "\n".join([*_heading(self), "", *_table(self.tensors)])


def show(path: Path, iteration: int | None = None) -> Contents:
    """The contents of a checkpoint: a root (by default its newest iteration) or one folder.

    Reads the metadata only. Raises UserError when it is missing, damaged or unsafe.
    """
    folder = directory.resolve(path, iteration)
    metadata = read_metadata(folder / ".metadata")
    entries = sorted(metadata.state_dict_metadata.items())
    tensors = [
        StoredTensor(
            key,
            tuple(entry.size),
            str(entry.properties.dtype).removeprefix("torch."),
            prod(entry.size) * entry.properties.dtype.itemsize,
            len(entry.chunks),
        )
        for key, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    ]
    args = read_common(folder / "common.pt").get("args")
    has_state = (folder / trainer_state.FILE_NAME).exists()
    return Contents(
        directory=folder,
        tensors=tensors,
        objects=len(entries) - len(tensors),
        files={file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        state=TrainerState.read(folder) if has_state else None,
        arguments=vars(args) if isinstance(args, argparse.Namespace) else {},
        has_checksums=(folder / checksums.FILE_NAME).exists(),
    )


def _heading(contents: Contents) -> list[str]:
    total = sum(contents.files.values())
    shards = sum(name.endswith(".distcp") for name in contents.files)
    weights = sum(t.bytes for t in contents.tensors if not t.key.startswith("optimizer."))
    stored = sum(t.bytes for t in contents.tensors)
    lines = [
        str(contents.directory),
        f"  {len(contents.files)} files ({shards} with shards), {total:,} bytes; "
        f"checksums {'recorded' if contents.has_checksums else 'not recorded'}",
        f"  {len(contents.tensors)} tensors, {stored:,} bytes: weights {weights:,}, optimizer "
        f"{stored - weights:,}; {contents.objects} other objects",
    ]
    if contents.arguments:
        layout = {
            short: contents.arguments.get(f"{name}_parallel_size", "?")
            for short, name in (
                ("TP", "tensor_model"), ("PP", "pipeline_model"), ("CP", "context"), ("DP", "data")
            )
        }  # fmt: skip
        lines += ["  written by " + " x ".join(f"{name} {size}" for name, size in layout.items())]
    state = contents.state
    if state is None:
        return [*lines, "  weights without the state of a training run"]
    sources = ", ".join(
        f"{name} {count:,}" for name, count in state.consumed_samples_by_source.items()
    )
    lines += [
        f"  after step {state.iteration} of {state.identity.steps}: {state.consumed_samples:,} "
        f"samples ({sources}), {state.trained_tokens:,} trained tokens, "
        f"{len(state.skipped_steps)} skipped steps",
        f"  seed {state.identity.seed}, blend {state.identity.blend[:12]}, "
        f"global batch {state.identity.global_batch_size}, "
        f"sequence length {state.identity.sequence_length}",
    ]
    lines += [f"  {name}: {_pairs(value)}" for name, value in state.written_by.items()]
    return lines


def _pairs(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name} {entry}" for name, entry in value.items())


def _table(tensors: list[StoredTensor]) -> list[str]:
    rows = [("tensor", "shape", "dtype", "bytes", "chunks")]
    rows += [
        (t.key, " x ".join(map(str, t.shape)), t.dtype, f"{t.bytes:,}", str(t.chunks))
        for t in tensors
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        f"{key:<{widths[0]}}  {shape:<{widths[1]}}  {dtype:<{widths[2]}}  {size:>{widths[3]}}  "
        f"{chunks:>{widths[4]}}"
        for key, shape, dtype, size, chunks in rows
    ]
