"""Documents on the disk between the stages of a curation: shards of compressed JSON lines.

A line is `{"id", "text", "metadata"}`, which datatrove's own readers and writers use as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from datatrove.data import Document

from data_prep.indexed import Writable
from data_prep.ranges import Format, InputRange
from data_prep.sft.reader import read_records
from megatron_soaes.files import atomic_file

UNKNOWN = "unknown"
COLUMNS = ("id", "text", "corpus", "source", "language", "metadata")
ROW = pa.schema([(name, pa.large_string()) for name in COLUMNS])
ZSTD_LEVEL = 1
"""A tenth more bytes than level 3 in half of the time."""
ROW_GROUP_CHARACTERS = 64 * 2**20


def source_of(document: Document) -> str:
    """Where a document comes from, for the account."""
    return str(document.metadata.get("source", UNKNOWN))


def language_of(document: Document) -> str:
    """The language found for a document, or `unknown` before one was looked for."""
    return str(document.metadata.get("language", UNKNOWN))


def read_shard(path: Path) -> Iterator[Document]:
    """The documents of a shard in their order. Raises UserError for a file that is cut short."""
    size = path.stat().st_size
    for batch in read_records(InputRange(0, path, Format.ZSTD, 0, size, size)):
        for record in batch.records:
            yield Document(**record.value)


@contextmanager
def shard_writer(path: Path) -> Iterator[Writable]:
    """A stream for `write_document`; the shard appears when the block ends and not if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_file(path, "wb") as file,
        zstandard.ZstdCompressor(ZSTD_LEVEL).stream_writer(file, closefd=False) as stream,
    ):
        yield stream


def write_document(stream: Writable, document: Document) -> None:
    """Write one line."""
    row = {"id": document.id, "text": document.text, "metadata": document.metadata}
    stream.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS))


def write_parquet(path: Path, documents: Iterable[Document]) -> Iterator[Document]:
    """Pass documents on and write them as rows of `path`, which appears when all are written.

    Columns are `id`, `text`, `corpus`, `source`, `language` and, as JSON text, `metadata`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "wb") as file, pq.ParquetWriter(file, ROW, compression="zstd") as writer:
        rows: list[dict[str, str]] = []
        characters = 0
        for document in documents:
            rows.append(_row(document))
            characters += len(document.text)
            if characters >= ROW_GROUP_CHARACTERS:
                writer.write_table(pa.Table.from_pylist(rows, ROW))
                rows, characters = [], 0
            yield document
        writer.write_table(pa.Table.from_pylist(rows, ROW))


def _row(document: Document) -> dict[str, str]:
    metadata = orjson.dumps(document.metadata, option=orjson.OPT_SORT_KEYS).decode()
    return {
        "id": document.id, "text": document.text, "corpus": document.metadata["corpus"],
        "source": source_of(document), "language": language_of(document), "metadata": metadata,
    }  # fmt: skip
