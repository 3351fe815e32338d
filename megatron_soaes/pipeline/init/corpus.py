"""What a corpus is, from the first records and the sizes of its files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.ranges import Format, InputFile, find_inputs, plan_ranges
from data_prep.sft.reader import read_records
from megatron_soaes.errors import UserError

TEXT_KEYS = ("text", "content")
CONVERSATION_KEYS = ({"messages"}, {"conversations"}, {"instruction", "output"})
"""Keys of a record in each of the forms that `data_prep.preprocess_sft` reads."""
LOOKED_INTO = 16
"""Files whose first record is looked at; what differs elsewhere stops their tokenization."""
BYTES_PER_TOKEN = 4
"""UTF-8 text, English or Chinese, to within a half."""
COMPRESSION = 3
"""Bytes of text in a byte of a compressed or Parquet file."""


@dataclass(frozen=True)
class Corpus:
    """Documents or conversations in files."""

    patterns: tuple[str, ...]
    """Absolute paths or globs."""
    files: int
    key: str | None
    """The key that holds a document's text; None for conversations."""
    tokens: int
    """Estimated from the sizes of the files."""

    @property
    def is_chat(self) -> bool:
        """Whether it holds conversations."""
        return self.key is None


def look_into(patterns: Sequence[str]) -> Corpus:
    """The corpus that paths and globs name.

    Raises UserError for one that matches nothing, for a file that cannot be read, for records that
    are neither documents nor conversations, and for files of both.
    """
    absolute = tuple(map(_absolute, patterns))
    try:
        found = find_inputs(absolute)
    except UserError as error:
        raise UserError(f"--corpus {error.where}", error.found, error.expected, error.fix) from None
    keys = {file.path: _text_key(file) for file in found[:LOOKED_INTO]}
    first, key = next(iter(keys.items()))
    for path, other in keys.items():
        if other != key:
            raise UserError(
                path, _kind(other), f"{_kind(key)}, as in {first}",
                "Make a project for one kind, and add the other to its recipe.",
            )  # fmt: skip
    return Corpus(absolute, len(found), key, estimated_tokens(found))


def _absolute(pattern: str) -> str:
    path = os.path.abspath(Path(pattern).expanduser())  # noqa: PTH100 - globs are no paths
    return glob.escape(path) if Path(path).exists() else path


def estimated_tokens(files: Iterable[InputFile]) -> int:
    """How many tokens the text of files has, from their sizes on the disk."""
    return sum(map(_bytes_of_text, files)) // BYTES_PER_TOKEN


def _bytes_of_text(file: InputFile) -> int:
    return file.size * (1 if file.format is Format.JSONL else COMPRESSION)


def _kind(key: str | None) -> str:
    return "conversations" if key is None else f"documents at {key!r}"


def _text_key(file: InputFile) -> str | None:
    """Where the first record of a file has its text; None for a conversation."""
    for batch in (one for each in plan_ranges([file], None, None) for one in read_records(each)):
        if batch.bad:
            line, problem = batch.bad[0]
            raise UserError(
                f"{file.path}:{line}", problem.found, "a JSON object a line, or a Parquet row",
                'Write each text as a line of its own: {"text": "..."}.',
            )  # fmt: skip
        if batch.records:
            return _key_of(file.path, batch.records[0].value)
    raise UserError(file.path, "no record", "documents or conversations", "Leave the file out.")


def _key_of(path: Path, record: dict[str, object]) -> str | None:
    present = {key for key, value in record.items() if value is not None}
    if any(keys <= present for keys in CONVERSATION_KEYS):
        return None
    for key in TEXT_KEYS:
        if isinstance(record.get(key), str):
            return key
    raise UserError(
        path, f"a record with the keys {', '.join(record) or 'of nothing'}",
        "a text at 'text' or 'content', or a conversation (messages, ShareGPT, Alpaca)",
        "Rename the key; docs/guides/bring-your-corpus.md says what is read.",
    )  # fmt: skip
