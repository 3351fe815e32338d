"""One line of a corpus: its texts, or why it has none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import orjson

from megatron_soaes.errors import UserError

FOUND_CHARACTERS = 60


class Reason(StrEnum):
    """Why a line holds no document."""

    INVALID_UTF8 = "invalid_utf8"
    INVALID_JSON = "invalid_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_KEY = "missing_key"
    NULL_VALUE = "null_value"
    NOT_A_STRING = "not_a_string"
    LONE_SURROGATE = "lone_surrogate"


class BadDocumentError(Exception):
    """A line that holds no document: `found` says what stands there, `raw` is the line itself."""

    def __init__(self, reason: StrEnum, found: str, raw: bytes) -> None:
        super().__init__(reason, found, raw)
        self.reason = reason
        self.found = found
        self.raw = raw


@dataclass(frozen=True)
class Batch:
    """Consecutive documents of one range of a corpus file.

    `texts[key][i]` is the text of document `i`; `lines` counts all lines (or rows) taken, blank
    and bad ones included; `size` is the number of bytes they took on the disk.
    """

    texts: dict[str, list[str]]
    bad: list[tuple[int, BadDocumentError]]
    """Bad lines with their number in the range, from 1."""
    lines: int
    blank: int
    size: int


def parse_json_line(line: bytes, keys: tuple[str, ...]) -> list[str] | None:
    """The string at each of `keys`, or None for a blank line.

    A line is read as Python's `json` reads it: the last of two equal keys wins, NaN is allowed.
    Raises `BadDocumentError`.
    """
    record, is_strict = _parse_object(line)
    if record is None:
        return None
    texts: list[str] = []
    for key in keys:
        text = record.get(key)
        if type(text) is not str:
            raise _no_text(record, key, line)
        if not is_strict:
            check_surrogates(text, f"at '{key}'", line)
        texts.append(text)
    return texts


def parse_json_object(line: bytes) -> dict[str, object] | None:
    """The JSON object on a line, as Python's `json` reads it, or None for a blank line.

    Its strings may hold halves of surrogate pairs. Raises `BadDocumentError`.
    """
    return _parse_object(line)[0]


def _parse_object(line: bytes) -> tuple[dict[str, object] | None, bool]:
    """See `parse_json_object`; and whether orjson read it, which refuses half a surrogate pair."""
    is_strict = True
    try:
        record: object = orjson.loads(line)
    except orjson.JSONDecodeError:
        if not line.strip(b" \t\r\n"):
            return None, is_strict
        record, is_strict = _loads_as_python(line), False
    if not isinstance(record, dict):
        raise BadDocumentError(Reason.NOT_AN_OBJECT, f"a JSON {json_type(record)}", line)
    return record, is_strict


def check_surrogates(text: str, place: str, raw: bytes) -> None:
    """Raise `BadDocumentError` for text that cannot be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        found = f"half a surrogate pair {place}"
        raise BadDocumentError(Reason.LONE_SURROGATE, found, raw) from None


def _no_text(record: dict[str, object], key: str, raw: bytes) -> BadDocumentError:
    if key not in record:
        present = shorten(", ".join(record)) or "none"
        return BadDocumentError(Reason.MISSING_KEY, f"no key '{key}' (keys: {present})", raw)
    value = record[key]
    if value is None:
        return BadDocumentError(Reason.NULL_VALUE, f"null at '{key}'", raw)
    return BadDocumentError(Reason.NOT_A_STRING, f"a JSON {json_type(value)} at '{key}'", raw)


def _loads_as_python(line: bytes) -> object:
    """What orjson refused: Python's reader accepts more, and says better what is wrong."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"invalid UTF-8 (byte 0x{line[error.start]:02x} at offset {error.start})"
        raise BadDocumentError(Reason.INVALID_UTF8, found, line) from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at column {error.colno}"
    except RecursionError:
        detail = "nested too deeply"
    except ValueError as error:
        detail = str(error)
    found = f"invalid JSON ({detail}) in {shorten(text.strip())!r}"
    raise BadDocumentError(Reason.INVALID_JSON, found, line)


def json_type(value: object) -> str:
    """The name of a parsed value's JSON type."""
    names: dict[type, str] = {list: "array", dict: "object", bool: "boolean", str: "string"}
    if value is None:
        return "null"
    return names.get(type(value), "number")


def shorten(text: str) -> str:
    """The start of a text, for a message."""
    return text if len(text) <= FOUND_CHARACTERS else text[:FOUND_CHARACTERS] + "..."


def damaged_file(path: Path, error: Exception) -> UserError:
    """The error for a compressed or Parquet file that cannot be read to its end."""
    found = f"damaged content ({error or type(error).__name__})"
    return UserError(path, found, "a complete file", "Copy or write the file again.")


def missing_package(path: Path, package: str) -> UserError:
    """The error for a file whose format needs a package that is not installed."""
    fix = f"Run: pip install {package}"
    return UserError(path, f"no Python package '{package}'", "it, to read this file", fix)
