"""The documents of one range of a corpus: plain, gzip or zstd JSON lines, or Parquet rows."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from data_prep.documents import (
    BadDocumentError,
    Batch,
    damaged_file,
    missing_package,
    parse_json_line,
)
from data_prep.parquet import read_row_group
from data_prep.ranges import Format, InputRange

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BATCH_BYTES = 4 * 2**20
READ_BUFFER_BYTES = 2**20
ZSTD_READ_BYTES = 64 * 2**10
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_batches(source: InputRange, keys: tuple[str, ...]) -> Iterator[Batch]:
    """The documents of one range, in batches of about `BATCH_BYTES` of text.

    Raises `UserError` when a compressed or Parquet file is damaged or cut short.
    """
    if source.format is Format.PARQUET:
        yield from read_row_group(source.path, source.start, keys, BATCH_BYTES, source.size)
        return
    first = 1
    for lines, size in line_groups(source):
        yield _parse_lines(lines, keys, first, size)
        first += len(lines)


def _parse_lines(lines: list[bytes], keys: tuple[str, ...], first: int, size: int) -> Batch:
    documents: list[list[str]] = []
    bad: list[tuple[int, BadDocumentError]] = []
    blank = 0
    for number, line in enumerate(lines, start=first):
        try:
            texts = parse_json_line(line, keys)
        except BadDocumentError as problem:
            bad.append((number, problem))
            continue
        if texts is None:
            blank += 1
        else:
            documents.append(texts)
    columns = {key: [texts[i] for texts in documents] for i, key in enumerate(keys)}
    return Batch(columns, bad, len(lines), blank, size)


def line_groups(source: InputRange) -> Iterator[tuple[list[bytes], int]]:
    """Groups of lines of about `BATCH_BYTES`, and the bytes each group took on the disk.

    Raises `UserError` when a compressed file is damaged or cut short.
    """
    with source.path.open("rb", buffering=READ_BUFFER_BYTES) as raw:
        if source.start:
            # A line that runs over the start belongs to the range before.
            raw.seek(source.start - 1)
            raw.readline()
        taken = raw.tell()
        group: list[bytes] = []
        group_bytes = 0
        for line in _lines(raw, source):
            group.append(line)
            group_bytes += len(line)
            if group_bytes >= BATCH_BYTES:
                yield group, raw.tell() - taken
                taken = raw.tell()
                group, group_bytes = [], 0
        if group:
            yield group, raw.tell() - taken


def _lines(raw: IO[bytes], source: InputRange) -> Iterator[bytes]:
    """The lines that start in the range, without a byte order mark at the start of the file."""
    if source.format is Format.JSONL:
        yield from _lines_until(raw, source.stop)
        return
    try:
        with _decompressed(raw, source) as stream:
            for number, line in enumerate(stream):
                yield line if number else line.removeprefix(BYTE_ORDER_MARK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged_file(source.path, error) from error


def _lines_until(raw: IO[bytes], stop: int) -> Iterator[bytes]:
    position = raw.tell()
    while position < stop:
        line = raw.readline()
        if not line:
            return
        yield line if position else line.removeprefix(BYTE_ORDER_MARK)
        position += len(line)


def _decompressed(raw: IO[bytes], source: InputRange) -> io.BufferedReader:
    if source.format is Format.GZIP:
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), READ_BUFFER_BYTES)
    return io.BufferedReader(_ZstdFile(raw, source.path), READ_BUFFER_BYTES)


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of zstd frames; unlike zstandard's own reader it notices a missing end."""

    def __init__(self, raw: IO[bytes], path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise missing_package(path, "zstandard") from error
        self._raw = raw
        self._path = path
        self._damage = zstandard.ZstdError
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._inside_frame = False
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._output:
            compressed = self._frame.unused_data or self._raw.read(ZSTD_READ_BYTES)
            if self._frame.eof:
                self._frame = self._new_frame()
                self._inside_frame = False
            if not compressed:
                if self._inside_frame:
                    raise EOFError("the last zstd frame is cut short")
                return 0
            self._inside_frame = True
            try:
                self._output = memoryview(self._frame.decompress(compressed))
            except self._damage as error:
                raise damaged_file(self._path, error) from error
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._output))
        target[:count] = self._output[:count]
        self._output = self._output[count:]
        return count
