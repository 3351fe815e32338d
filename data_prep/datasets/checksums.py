"""Checksums of a dataset's files, kept in its manifest.

A file is a row of pieces, each with its size and its XXH3-128: a piece is what one worker wrote, so
that merging neither reads tokens again nor hashes them again. XXH3-128 finds accidents many times
faster than SHA-256; against an attacker, who can change the manifest too, neither would help.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import xxhash

from megatron_soaes.errors import UserError

READ_BYTES = 16 * 2**20
Piece = tuple[int, str]
"""Bytes, and their XXH3-128 in hex."""


@dataclass
class HashedStream:
    """Writes to a stream and hashes what it writes: one piece."""

    stream: IO[bytes]

    def __post_init__(self) -> None:
        self._digest = xxhash.xxh3_128()
        self._bytes = 0

    def write(self, data: Any) -> int:
        """Write a buffer; returns its bytes."""
        view = memoryview(data)
        # An empty array's view cannot be cast.
        if view.nbytes:
            self._digest.update(view.cast("B"))
            self._bytes += view.nbytes
            self.stream.write(view)
        return view.nbytes

    @property
    def piece(self) -> Piece:
        """What was written until now."""
        return self._bytes, self._digest.hexdigest()


def piece_of(file: Path) -> Piece:
    """A file that is already written, as one piece."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while data := stream.read(READ_BYTES):
            digest.update(data)
    return file.stat().st_size, digest.hexdigest()


def described(pieces: Iterable[Piece]) -> dict[str, Any]:
    """The entry of a file in a manifest."""
    rows = [list(piece) for piece in pieces]
    return {"bytes": sum(size for size, _ in rows), "xxh3_128": rows}


def pieces_of(entry: dict[str, Any]) -> list[Piece]:
    """The pieces of a file's entry."""
    return [(size, digest) for size, digest in entry["xxh3_128"]]


def verify(file: Path, entry: dict[str, Any]) -> None:
    """Read a file and compare it; raises UserError that names the bytes that differ."""
    size = file.stat().st_size
    if size != entry["bytes"]:
        raise _altered(file, f"{size} bytes", f"{entry['bytes']}, by the manifest")
    start = 0
    with file.open("rb") as stream:
        for length, expected in pieces_of(entry):
            digest = xxhash.xxh3_128()
            left = length
            while left:
                data = stream.read(min(left, READ_BYTES))
                digest.update(data)
                left -= len(data)
            if digest.hexdigest() != expected:
                found = f"other bytes between {start} and {start + length}"
                raise _altered(file, found, f"XXH3-128 {expected}, by the manifest")
            start += length


def _altered(file: Path, found: str, expected: str) -> UserError:
    return UserError(file, found, expected, "Copy the dataset again, or make it again.")
