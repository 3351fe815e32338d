"""Writes a dataset of its own: two files and their manifest, the manifest last."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from data_prep.datasets.checksums import HashedStream
from data_prep.datasets.manifest import SUFFIX
from data_prep.indexed import HEADER, MAGIC, TYPE_CODES, Index, in_rows
from megatron_soaes.errors import UserError
from megatron_soaes.files import fsync_directory, write_json


def require_free(prefix: Path) -> None:
    """Raise UserError when a file of a dataset of this name exists."""
    for suffix in (".bin", ".idx", SUFFIX):
        if Path(f"{prefix}{suffix}").exists():
            raise UserError(
                f"{prefix}{suffix}", "an existing file", "a new name", "Choose another prefix."
            )


@contextmanager
def new_datasets(prefixes: Sequence[Path]) -> Iterator[Path]:
    """A folder for `NAME.bin`, `.idx` and manifests, moved beside each prefix when all is written.

    All prefixes are in one folder. Indexes are moved after tokens and manifests last, so that what
    a kill leaves of a dataset opens nowhere. Raises UserError when one exists.
    """
    for prefix in prefixes:
        require_free(prefix)
    parent = prefixes[0].parent
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent, prefix=f".{prefixes[0].name}.tmp-") as name:
        folder = Path(name)
        yield folder
        for suffix in (".bin", ".idx", SUFFIX):
            for prefix in prefixes:
                made = folder / f"{prefix.name}{suffix}"
                with made.open("rb") as stream:
                    os.fsync(stream.fileno())
                made.replace(f"{prefix}{suffix}")
        fsync_directory(parent)


def write_index(stream: HashedStream, indexes: Sequence[Index]) -> None:
    """Write the `.idx` of datasets laid one after the other; memory does not grow with them."""
    sequences = sum(len(index.lengths) for index in indexes)
    boundaries = sum(map(len, indexes)) + 1
    dtype = indexes[0].dtype
    stream.write(HEADER.pack(MAGIC, 1, TYPE_CODES[dtype.str], sequences, boundaries))
    for index in indexes:
        for rows in in_rows(index.lengths):
            stream.write(np.ascontiguousarray(rows, dtype="<i4"))
    first = 0
    for index in indexes:
        for rows in in_rows(index.offsets):
            stream.write((rows + first).astype("<i8"))
        first += index.bytes
    first = 0
    for index in indexes:
        for rows in in_rows(index.document_index[:-1]):
            stream.write((rows + first).astype("<i8"))
        first += len(index.lengths)
    stream.write(struct.pack("<q", first))


def write_manifest(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Write the manifest of a dataset."""
    write_json(folder / f"{name}{SUFFIX}", content)
