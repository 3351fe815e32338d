"""Parquet files, read by row group: text columns, or whole rows."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from data_prep.documents import BadDocumentError, Batch, Reason, damaged_file, missing_package
from megatron_soaes.errors import UserError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

STRING_TYPES = ("string", "large_string", "string_view")


def row_groups(path: Path, keys: tuple[str, ...] | None) -> Iterator[tuple[int, int, int]]:
    """(first row group, next row group, bytes on the disk of the columns `keys`), one at a time.

    None for `keys` means all columns. Raises `UserError` when a column is missing or holds no
    strings.
    """
    with _open(path) as file:
        schema = file.schema_arrow
        for key in keys or ():
            if key not in schema.names:
                raise UserError(
                    path,
                    f"columns {', '.join(schema.names)}",
                    f"a column '{key}'",
                    "Name the text column with --json-keys.",
                )
            found = schema.field(key).type
            if str(getattr(found, "value_type", found)) not in STRING_TYPES or found.num_fields:
                raise UserError(
                    f"{path}: column '{key}'",
                    f"type {found}",
                    "strings",
                    "Cast the column or name another with --json-keys.",
                )
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            columns = [group.column(position) for position in range(group.num_columns)]
            read = [c for c in columns if keys is None or c.path_in_schema in keys]
            size = sum(column.total_compressed_size for column in read)
            yield number, number + 1, size


def read_row_group(
    path: Path, number: int, keys: tuple[str, ...], batch_bytes: int, size: int
) -> Iterator[Batch]:
    """The documents of one row group in batches of about `batch_bytes` of text.

    `size` is what the row group counts in progress. Raises `UserError` when the file is damaged.
    """
    for table, first, share in _tables(path, number, list(keys), batch_bytes):
        columns = [_values(table.column(key)) for key in keys]
        yield _batch(columns, keys, first, table.num_rows, int(share * size))


def read_rows(
    path: Path, number: int, batch_bytes: int, size: int
) -> Iterator[tuple[list[dict[str, object] | BadDocumentError], int]]:
    """The rows of one row group as JSON objects, and the part of `size` that each batch counts.

    A batch is about `batch_bytes`. A row that is not UTF-8 is a `BadDocumentError`. Raises
    `UserError` when the file is damaged.
    """
    for table, _, share in _tables(path, number, None, batch_bytes):
        try:
            rows = table.to_pylist()
        except UnicodeDecodeError:
            rows = [_row(table.slice(position, 1)) for position in range(table.num_rows)]
        yield rows, int(share * size)


def _row(table: Any) -> dict[str, object] | BadDocumentError:
    try:
        row: dict[str, object] = table.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadDocumentError(Reason.INVALID_UTF8, "invalid UTF-8", error.object)
    return row


def _tables(
    path: Path, number: int, columns: list[str] | None, batch_bytes: int
) -> Iterator[tuple[Any, int, Fraction]]:
    """Record batches of one row group with their first row, from 1, and their share of its rows."""
    import pyarrow

    with _open(path) as file:
        group = file.metadata.row_group(number)
        rows = max(1, group.num_rows * batch_bytes // max(1, group.total_byte_size))
        first = 1
        try:
            for table in file.iter_batches(rows, row_groups=[number], columns=columns):
                yield table, first, Fraction(table.num_rows, group.num_rows)
                first += table.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise damaged_file(path, error) from error


def _batch(
    columns: list[list[str | bytes | None]], keys: tuple[str, ...], first: int, rows: int, size: int
) -> Batch:
    texts: dict[str, list[str]] = {key: [] for key in keys}
    bad: list[tuple[int, BadDocumentError]] = []
    for number, values in enumerate(zip(*columns, strict=True), start=first):
        row = dict(zip(keys, values, strict=True))
        problem = _problem(row)
        if problem is not None:
            bad.append((number, problem))
            continue
        for key, value in row.items():
            texts[key].append(str(value))
    return Batch(texts, bad, lines=rows, blank=0, size=size)


def _problem(row: dict[str, str | bytes | None]) -> BadDocumentError | None:
    for key, value in row.items():
        if isinstance(value, bytes):
            return BadDocumentError(Reason.INVALID_UTF8, f"invalid UTF-8 at '{key}'", value)
    for key, value in row.items():
        if value is None:
            return BadDocumentError(Reason.NULL_VALUE, f"null at '{key}'", orjson.dumps(row))
    return None


def _values(column: Any) -> list[str | bytes | None]:
    """The values of an Arrow column; a value that is not UTF-8 stays bytes."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> str | bytes | None:
    try:
        text: str | None = scalar.as_py()
    except UnicodeDecodeError:
        return bytes(scalar.as_buffer())
    return text


def _open(path: Path) -> ParquetFile:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise missing_package(path, "pyarrow") from error
    try:
        return ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise damaged_file(path, error) from error
