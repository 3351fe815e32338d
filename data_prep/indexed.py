"""The Megatron indexed dataset on the disk: writing, reading, checking.

`PREFIX.bin` is the tokens, nothing else. `PREFIX.idx`, little endian: magic `MMIDIDX\\0\\0`, u64
version 1, u8 type code, u64 sequences N, u64 documents + 1, i32 length [N], i64 byte offset [N],
i64 document_index [documents + 1] (the first sequence of each document, then N). The format is
that of `megatron/core/datasets/indexed_dataset.py`; a text without tokens is a document without
sequence.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from megatron_soaes.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
TYPE_CODES = {
    "|u1": 1, "|i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<f8": 6, "<f4": 7, "<u2": 8,
}  # fmt: skip
COPY_BYTES = 2**30
ROWS = 2**20
"""Rows of an index that are in memory at a time."""

TokenLengths = npt.NDArray[np.int32]


class Writable(Protocol):
    """Takes bytes."""

    def write(self, data: Any, /) -> int: ...


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 below 65,500 tokens, else int32 (`DType.optimal_dtype` of Megatron-Core)."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


def write_index(
    stream: Writable,
    dtype: np.dtype[Any],
    documents: int,
    sequences: int,
    document_lengths: Callable[[], Iterable[TokenLengths]],
) -> None:
    """Write an `.idx` for documents of one sequence each (of none where the length is 0).

    `document_lengths()` yields int32 pieces with the number of tokens of every document; it is
    read three times, a piece at a time, so memory does not grow with the dataset.
    """
    stream.write(HEADER.pack(MAGIC, 1, TYPE_CODES[dtype.str], sequences, documents + 1))
    for lengths in document_lengths():
        stream.write(lengths[lengths > 0].astype("<i4").tobytes())
    offset = 0
    for lengths in document_lengths():
        sizes = lengths[lengths > 0].astype("<i8") * dtype.itemsize
        stream.write((offset + np.cumsum(sizes) - sizes).astype("<i8").tobytes())
        offset += int(sizes.sum())
    stream.write(struct.pack("<q", 0))
    sequence = 0
    for lengths in document_lengths():
        stream.write((sequence + np.cumsum(lengths > 0)).astype("<i8").tobytes())
        sequence += int(np.count_nonzero(lengths))


def concatenate(stream: IO[bytes], parts: Iterable[Path]) -> None:
    """Append the bytes of `parts` in order; the kernel copies them, where it can without moving
    them through memory.
    """
    stream.flush()
    for part in parts:
        with part.open("rb") as source:
            left = part.stat().st_size
            while left:
                copied = _copy(source.fileno(), stream.fileno(), left)
                if not copied:
                    raise _broken(part, "an end before its size", "a file that rests")
                left -= copied


def _copy(source: int, target: int, count: int) -> int:
    """Copy up to `count` bytes from one file's position to another's; returns how many."""
    try:
        return os.copy_file_range(source, target, min(count, COPY_BYTES))
    except OSError as error:
        # Two file systems that share no blocks, or one that has no such call.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return os.sendfile(target, source, None, min(count, COPY_BYTES))


@dataclass(frozen=True)
class Index:
    """An `.idx`, memory-mapped.

    `lengths` int32 [N] and `offsets` int64 [N] (in bytes) describe its N sequences;
    `document_index` is int64 [documents + 1].
    """

    dtype: np.dtype[Any]
    lengths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    document_index: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.document_index) - 1

    @property
    def bytes(self) -> int:
        """The size of the `.bin` that belongs to it."""
        return int(self.lengths.sum(dtype=np.int64)) * self.dtype.itemsize

    def document_at(self, byte: int) -> int:
        """The document that a byte of the `.bin` belongs to."""
        sequence = int(np.searchsorted(self.offsets, byte, side="right")) - 1
        return int(np.searchsorted(self.document_index, sequence, side="right")) - 1


@dataclass(frozen=True)
class IndexedDataset(Index):
    """A dataset on the disk, memory-mapped: an index and `tokens`, the `.bin`, [total tokens]."""

    tokens: npt.NDArray[Any]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, document: int) -> npt.NDArray[Any]:
        """The tokens of one document, [tokens]."""
        if not 0 <= document < len(self):
            raise IndexError(document)
        first, last = self.document_index[document : document + 2]
        if first == last:
            return self.tokens[:0]
        start = int(self.offsets[first]) // self.tokens.itemsize
        return self.tokens[start : start + int(self.lengths[first:last].sum())]


def read_index(path: Path) -> Index:
    """Map an `.idx` and check it by itself. Raises `UserError` for what is none or contradicts
    itself."""
    if path.stat().st_size < HEADER.size:
        raise _broken(path, "no complete header", f"{HEADER.size} bytes or more")
    data = np.memmap(path, dtype=np.uint8, mode="r")
    magic, version, code, sequences, boundaries = HEADER.unpack(data[: HEADER.size].tobytes())
    types = {number: name for name, number in TYPE_CODES.items()}
    if magic != MAGIC or version != 1 or code not in types:
        found = f"magic {magic!r}, version {version}, type code {code}"
        expected = f"{MAGIC!r}, 1 and a type code of Megatron-Core, 1 to {max(types)}"
        raise _broken(path, found, expected)
    size = HEADER.size + 12 * sequences + 8 * boundaries
    if len(data) == size + sequences != size:
        raise UserError(
            path, "a mode for each sequence (a multimodal dataset)", "an index of text alone",
            "Use Megatron's own tools: the modes would be lost.",
        )  # fmt: skip
    if len(data) != size:
        raise _broken(path, f"{len(data)} bytes", f"{size} by its header")
    edges = np.cumsum([HEADER.size, 4 * sequences, 8 * sequences, 8 * boundaries])
    lengths, offsets, document_index = (
        data[start:stop].view(kind)
        for start, stop, kind in zip(edges, edges[1:], ("<i4", "<i8", "<i8"), strict=False)
    )
    index = Index(np.dtype(types[code]), lengths, offsets, document_index)
    _check_sequences(path, index)
    _check_documents(path, index)
    return index


def in_rows(array: npt.NDArray[Any], overlap: int = 0) -> Iterator[npt.NDArray[Any]]:
    """`ROWS` of an array at a time; each piece also has the first `overlap` rows of the next."""
    return (array[start : start + ROWS + overlap] for start in range(0, len(array), ROWS))


def _check_sequences(path: Path, index: Index) -> None:
    end = number = 0
    for lengths, offsets in zip(in_rows(index.lengths), in_rows(index.offsets), strict=True):
        sizes = lengths.astype(np.int64) * index.dtype.itemsize
        ends = end + np.cumsum(sizes)
        wrong = np.flatnonzero((sizes < 0) | (offsets != ends - sizes))
        if len(wrong):
            at = int(wrong[0])
            raise _broken(
                path,
                f"length {lengths[at]} and offset {offsets[at]} for sequence {number + at}",
                f"a length of 0 or more, and offset {ends[at] - sizes[at]} after the one before",
            )
        end, number = int(ends[-1]), number + len(lengths)


def _check_documents(path: Path, index: Index) -> None:
    boundaries, sequences = index.document_index, len(index.lengths)
    ends = boundaries[[0, -1]].tolist() if len(boundaries) else []
    falling = any((np.diff(piece) < 0).any() for piece in in_rows(boundaries, overlap=1))
    if ends != [0, sequences] or falling:
        raise _broken(path, "a document index out of order", f"0 rising to {sequences}")


def open_indexed(prefix: Path) -> IndexedDataset:
    """Map the dataset `PREFIX.bin`/`PREFIX.idx` and check that the two belong together.

    Raises `UserError` when a file is missing, is no indexed dataset, or contradicts the other.
    """
    index_path = Path(f"{prefix}.idx")
    tokens_path = Path(f"{prefix}.bin")
    for path in (index_path, tokens_path):
        if not path.is_file():
            raise UserError(
                path, "no file", "the two files of a dataset", "Name them without suffix."
            )
    index = read_index(index_path)
    size = tokens_path.stat().st_size
    if size != index.bytes:
        found = f"{size} bytes"
        if size < index.bytes:
            missing, document = index.bytes - size, index.document_at(size)
            found += f", {missing} short: it ends inside document {document}"
        raise _broken(tokens_path, found, f"{index.bytes}, by {index_path.name}")
    tokens = np.memmap(tokens_path, index.dtype, "r") if size else np.empty(0, index.dtype)
    return IndexedDataset(**vars(index), tokens=tokens)


def _broken(path: Path, found: str, expected: str) -> UserError:
    return UserError(path, found, expected, "Convert the corpus again.")
