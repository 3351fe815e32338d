"""The Megatron indexed dataset on the disk: writing, reading, checking.

`PREFIX.bin` is the tokens, nothing else. `PREFIX.idx`, little endian: magic `MMIDIDX\\0\\0`, u64
version 1, u8 type code, u64 sequences N, u64 documents + 1, i32 length [N], i64 byte offset [N],
i64 document_index [documents + 1] (the first sequence of each document, then N). The format is
that of `megatron/core/datasets/indexed_dataset.py`; a text without tokens is a document without
sequence.

`python -m data_prep.indexed PREFIX` checks a dataset and prints its counts.
"""

from __future__ import annotations

import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from megatron_soaes.errors import ExitCode, UserError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
TYPE_CODES = {"<i4": 4, "<f4": 7, "<u2": 8}
COPY_BYTES = 16 * 2**20

TokenLengths = npt.NDArray[np.int32]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 below 65,500 tokens, else int32 (`DType.optimal_dtype` of Megatron-Core)."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


def write_index(
    stream: IO[bytes],
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
    """Append the bytes of `parts` in order."""
    for part in parts:
        with part.open("rb") as source:
            shutil.copyfileobj(source, stream, COPY_BYTES)


@dataclass(frozen=True)
class IndexedDataset:
    """A dataset on the disk, memory-mapped.

    `tokens` is the `.bin`, [total tokens]; `lengths` int32 [N] and `offsets` int64 [N] (in bytes)
    describe its N sequences; `document_index` int64 [documents + 1].
    """

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    document_index: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.document_index) - 1

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
    if index_path.stat().st_size < HEADER.size:
        raise _broken(index_path, "no complete header", f"{HEADER.size} bytes or more")
    index = np.memmap(index_path, dtype=np.uint8, mode="r")
    magic, version, code, sequences, boundaries = HEADER.unpack(index[: HEADER.size].tobytes())
    types = {number: name for name, number in TYPE_CODES.items()}
    if magic != MAGIC or version != 1 or code not in types:
        found = f"magic {magic!r}, version {version}, type code {code}"
        raise _broken(index_path, found, "an index of int32, uint16 or float32 values")
    size = HEADER.size + 12 * sequences + 8 * boundaries
    if len(index) != size:
        raise _broken(index_path, f"{len(index)} bytes", f"{size} by its header")
    edges = np.cumsum([HEADER.size, 4 * sequences, 8 * sequences, 8 * boundaries])
    lengths, offsets, document_index = (
        index[start:stop].view(kind)
        for start, stop, kind in zip(edges, edges[1:], ("<i4", "<i8", "<i8"), strict=False)
    )
    dtype = np.dtype(types[code])
    sizes = lengths.astype(np.int64) * dtype.itemsize
    if tokens_path.stat().st_size != sizes.sum():
        found = f"{tokens_path.stat().st_size} bytes"
        raise _broken(tokens_path, found, f"{sizes.sum()}, by {index_path.name}")
    if not np.array_equal(offsets, np.cumsum(sizes) - sizes):
        raise _broken(index_path, "offsets that do not follow the lengths", "consecutive sequences")
    ends = document_index[[0, -1]].tolist() if boundaries else []
    if ends != [0, sequences] or (np.diff(document_index) < 0).any():
        raise _broken(index_path, "a document index out of order", f"0 rising to {sequences}")
    tokens = np.memmap(tokens_path, dtype, "r") if len(sizes) else np.empty(0, dtype)
    return IndexedDataset(tokens, lengths, offsets, document_index)


def _broken(path: Path, found: str, expected: str) -> UserError:
    return UserError(path, found, expected, "Convert the corpus again.")


def main(argv: list[str]) -> int:
    """Check the datasets with the prefixes `argv`; returns the exit code."""
    try:
        for prefix in argv:
            dataset = open_indexed(Path(prefix))
            empty = int((np.diff(dataset.document_index) == 0).sum())
            print(
                f"{prefix}: {len(dataset):,} documents ({empty:,} empty), "
                f"{len(dataset.lengths):,} sequences, {len(dataset.tokens):,} tokens, "
                f"{dataset.tokens.dtype.name}"
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
