"""Corpus files, cut into the ranges that are the units of work.

A range is a byte range of a plain JSONL file, a whole `.gz` or `.zst` file, or a row group of a
Parquet file. Ranges depend on the inputs only, never on the number of workers.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from data_prep.parquet import row_groups
from megatron_soaes.errors import UserError

RANGE_BYTES = 32 * 2**20


class Format(StrEnum):
    """How a corpus file stores its documents; told by the file name."""

    JSONL = "jsonl"
    GZIP = "jsonl.gz"
    ZSTD = "jsonl.zst"
    PARQUET = "parquet"


@dataclass(frozen=True)
class InputFile:
    """A corpus file as it was when the run was planned."""

    path: Path
    format: Format
    size: int
    modified_ns: int


@dataclass(frozen=True)
class InputRange:
    """One unit of work.

    `start` and `stop` are byte offsets (a line belongs to the range it starts in), or row group
    numbers for Parquet. `size` is the number of bytes on the disk that progress counts.
    """

    index: int
    path: Path
    format: Format
    start: int
    stop: int
    size: int

    def place(self, number: int) -> str:
        """Where a document stands: `file:line`, or the row of a Parquet file (both from 1)."""
        separator = ": row " if self.format is Format.PARQUET else ":"
        return f"{self.path}{separator}{number}"


def find_inputs(patterns: tuple[str, ...]) -> list[InputFile]:
    """Resolve paths and globs to files: arguments in order, the matches of a glob sorted.

    Raises `UserError` when an argument matches nothing or names a directory, and when a file is
    named twice.
    """
    files: list[InputFile] = []
    seen: set[Path] = set()
    for pattern in patterns:
        # pathlib's glob takes no absolute patterns
        matches = sorted(glob.glob(pattern, recursive=True))
        if Path(pattern).exists():
            matches = [pattern]
        if not matches:
            raise UserError(pattern, "no such file", "a path or a glob that matches", "Correct it.")
        for path in map(Path, matches):
            if path.is_dir():
                raise UserError(path, "a directory", "corpus files", f"Pass '{path}/*.jsonl'.")
            if path.resolve() in seen:
                raise UserError(
                    path,
                    "the file a second time",
                    "every file once (its documents would be doubled)",
                    "Make the arguments disjoint.",
                )
            seen.add(path.resolve())
            status = path.stat()
            files.append(InputFile(path, _format(path), status.st_size, status.st_mtime_ns))
    return files


def _format(path: Path) -> Format:
    suffixes = {".gz": Format.GZIP, ".zst": Format.ZSTD, ".parquet": Format.PARQUET}
    return suffixes.get(path.suffix.lower(), Format.JSONL)


def plan_ranges(
    files: list[InputFile],
    keys: tuple[str, ...] | None,
    partitions: int | None,
    range_bytes: int | None = None,
) -> list[InputRange]:
    """Cut files into ranges, in corpus order. `keys` are the text columns read; None: whole rows.

    A plain JSONL file is cut into `partitions` equal byte ranges, by default into as many as keep
    a range within `range_bytes` (None: `RANGE_BYTES`). Raises `UserError` when `partitions` is
    asked of a file that has no byte ranges, and when a Parquet file lacks a text column.
    """
    ranges: list[InputRange] = []
    for file in files:
        if file.format is not Format.JSONL and partitions is not None and partitions > 1:
            raise UserError(
                f"--partitions {partitions}",
                f"{file.path}, which is read in one pass or by row group",
                "plain JSONL inputs, which can be cut at any byte",
                "Leave --partitions out or decompress the file.",
            )
        for start, stop, size in _cuts(file, keys, partitions, range_bytes or RANGE_BYTES):
            ranges.append(InputRange(len(ranges), file.path, file.format, start, stop, size))
    return ranges


def _cuts(
    file: InputFile, keys: tuple[str, ...] | None, partitions: int | None, range_bytes: int
) -> Iterator[tuple[int, int, int]]:
    """(start, stop, bytes on the disk) of the ranges of one file."""
    if file.format is Format.PARQUET:
        yield from row_groups(file.path, keys)
    elif file.format is Format.JSONL:
        count = partitions or max(1, -(-file.size // range_bytes))
        edges = [file.size * part // count for part in range(count + 1)]
        yield from ((start, stop, stop - start) for start, stop in pairwise(edges) if stop > start)
    else:
        yield 0, file.size, file.size
