"""Scored documents as a curation writes them: JSON lines, plain or compressed, or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from data_prep.documents import json_type
from data_prep.ranges import InputRange, find_inputs, plan_ranges
from data_prep.sft.reader import read_records
from megatron_soaes.errors import UserError


def read_documents(patterns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The documents of files and globs, in their order.

    `metadata` may be an object or, as in Parquet, JSON text. Raises UserError with the line for
    one that is no JSON object with a `text`, and for a pattern without files.
    """
    files = find_inputs(tuple(patterns))
    for source in plan_ranges(files, keys=None, partitions=1):
        for batch in read_records(source):
            if batch.bad:
                number, problem = batch.bad[0]
                raise _bad_line(source, number, problem.found)
            for record in batch.records:
                yield _document(dict(record.value), source, record.number)


def _document(document: dict[str, Any], source: InputRange, number: int) -> dict[str, Any]:
    if not isinstance(document.get("text"), str):
        raise _bad_line(source, number, f"a JSON {json_type(document.get('text'))} at 'text'")
    metadata = document.get("metadata")
    try:
        if isinstance(metadata, str):
            metadata = document["metadata"] = orjson.loads(metadata)
    except orjson.JSONDecodeError as error:
        raise _bad_line(source, number, f"no JSON at 'metadata': {error}") from None
    if not isinstance(metadata, dict | None):
        raise _bad_line(source, number, f"a JSON {json_type(metadata)} at 'metadata'")
    return document


def _bad_line(source: InputRange, number: int, found: str) -> UserError:
    expected = "a JSON object with a 'text' and, where there is metadata, an object of it"
    return UserError(source.place(number), found, expected, "Correct the line.")
