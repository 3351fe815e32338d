"""The records of one range of a corpus: JSON objects on lines, or Parquet rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from data_prep.documents import BadDocumentError, parse_json_object
from data_prep.parquet import read_rows
from data_prep.ranges import Format, InputRange
from data_prep.readers import BATCH_BYTES, line_groups
from data_prep.sft.records import Record


@dataclass(frozen=True)
class NumberedRecord:
    """A record with its line (or row) in the range, from 1."""

    number: int
    value: Record
    line: bytes | None
    """As it stands in the file; None for a row."""

    @property
    def may_hold_surrogates(self) -> bool:
        """Whether there may be half a surrogate pair: only an escape makes one."""
        return self.line is not None and b"\\u" in self.line

    @property
    def raw(self) -> bytes:
        """What is kept of a record that is refused."""
        if self.line is not None:
            return self.line
        return orjson.dumps(self.value, default=repr, option=orjson.OPT_NON_STR_KEYS)


@dataclass(frozen=True)
class RecordBatch:
    """Consecutive records; `lines`, `blank`, `bad` and `size` are those of `documents.Batch`."""

    records: list[NumberedRecord]
    bad: list[tuple[int, BadDocumentError]]
    lines: int
    blank: int
    size: int


def read_records(source: InputRange) -> Iterator[RecordBatch]:
    """The records of one range in batches of about `BATCH_BYTES`.

    Raises `UserError` when a compressed or Parquet file is damaged or cut short.
    """
    first = 1
    if source.format is Format.PARQUET:
        for rows, size in read_rows(source.path, source.start, BATCH_BYTES, source.size):
            yield _of_rows(rows, first, size)
            first += len(rows)
        return
    for lines, size in line_groups(source):
        yield _of_lines(lines, first, size)
        first += len(lines)


def _of_lines(lines: list[bytes], first: int, size: int) -> RecordBatch:
    batch = RecordBatch([], [], len(lines), 0, size)
    for number, line in enumerate(lines, start=first):
        try:
            value = parse_json_object(line)
        except BadDocumentError as problem:
            batch.bad.append((number, problem))
            continue
        if value is not None:
            batch.records.append(NumberedRecord(number, value, line))
    blank = len(lines) - len(batch.records) - len(batch.bad)
    return RecordBatch(batch.records, batch.bad, len(lines), blank, size)


def _of_rows(rows: list[Record | BadDocumentError], first: int, size: int) -> RecordBatch:
    batch = RecordBatch([], [], len(rows), 0, size)
    for number, row in enumerate(rows, start=first):
        if isinstance(row, BadDocumentError):
            batch.bad.append((number, row))
        else:
            batch.records.append(NumberedRecord(number, row, None))
    return batch
