"""The first records of the user's own files: few and short, but in their own form."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import orjson
from tokenizers import Tokenizer

from data_prep.ranges import InputFile, find_inputs, plan_ranges
from data_prep.sft.reader import NumberedRecord, read_records
from megatron_soaes.recipe.data_settings import Dataset

MOST_FILES = 2
"""Of each pattern."""
MOST_SEEN = 2000
"""Records of a pattern that are looked at."""
MOST_DOCUMENTS = 400
ENOUGH_CHARACTERS = 24_000
"""Of documents: several windows of each part, training and held out."""
LONGEST_DOCUMENT = 2000
"""Characters that are taken of a document."""
CONVERSATIONS = 16
FEWEST_CONVERSATIONS = 4
"""Some to train on, and one that is held out."""
TURN_TOKENS = 8
"""Allowed for what a chat template writes round each text of a record."""
TEMPLATE_TOKENS = 32
"""Allowed for its system prompt."""

NO_LIMIT = 2**62

Taken = dict[str, list[bytes]]
"""Lines by the name of the file they come from."""


@dataclass(frozen=True)
class Room:
    """How long a conversation may be."""

    tokenizer: Tokenizer
    tokens: int

    def takes(self, record: NumberedRecord) -> bool:
        """Whether the record fits, by an estimate from above of its tokens."""
        texts = list(_texts(record.value))
        lengths = (len(one.ids) for one in self.tokenizer.encode_batch(texts))
        return sum(lengths) + TURN_TOKENS * len(texts) + TEMPLATE_TOKENS <= self.tokens


def _texts(value: object) -> Iterator[str]:
    """Every text within a record, names of fields left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def borrowed(dataset: Dataset, room: Room) -> list[Taken] | None:
    """First records of each of the dataset's patterns; None where it has none, or too few.

    Documents are cut; conversations, which cannot be cut, are the first that fit. Raises UserError
    for a file that cannot be read.
    """
    if not all(glob.glob(pattern, recursive=True) for pattern in dataset.files):
        return None
    share = len(dataset.files)
    if dataset.is_chat:
        taken = [_conversations(one, room, -(-CONVERSATIONS // share)) for one in dataset.files]
        enough = _count(taken) >= FEWEST_CONVERSATIONS
    else:
        wanted = ENOUGH_CHARACTERS // share
        taken = [_documents(one, dataset.key, wanted) for one in dataset.files]
        enough = sum(len(line) for one in taken for lines in one.values() for line in lines) >= (
            ENOUGH_CHARACTERS // 2
        )
    return taken if enough and all(_count([one]) for one in taken) else None


def _count(taken: list[Taken]) -> int:
    return sum(len(lines) for one in taken for lines in one.values())


def _records(file: InputFile) -> Iterator[NumberedRecord]:
    for one in plan_ranges([file], None, None):
        for batch in read_records(one):
            yield from batch.records


def _take(
    pattern: str, most: int, enough: int, line_of: Callable[[NumberedRecord], bytes | None]
) -> Taken:
    """Lines of the pattern's first files, of each at most so many, or enough bytes."""
    taken: Taken = {}
    for file in find_inputs((pattern,))[:MOST_FILES]:
        lines: list[bytes] = []
        for record in islice(_records(file), MOST_SEEN):
            if len(lines) == most or sum(map(len, lines)) >= enough:
                break
            line = line_of(record)
            if line is not None:
                lines.append(line)
        if lines:
            taken[file.path.name] = lines
    return taken


def _conversations(pattern: str, room: Room, most: int) -> Taken:
    def line_of(record: NumberedRecord) -> bytes | None:
        return _as_line(record.raw) if room.takes(record) else None

    return _take(pattern, most, NO_LIMIT, line_of)


def _documents(pattern: str, key: str, enough: int) -> Taken:
    def line_of(record: NumberedRecord) -> bytes:
        text = record.value.get(key)
        if isinstance(text, str) and len(text) > LONGEST_DOCUMENT:
            return _as_line(orjson.dumps(record.value | {key: text[:LONGEST_DOCUMENT]}))
        return _as_line(record.raw)

    return _take(pattern, MOST_DOCUMENTS, enough, line_of)


def _as_line(raw: bytes) -> bytes:
    return raw.strip(b"\r\n") + b"\n"


def first_lines(file: Path, count: int) -> bytes | None:
    """The first lines of a file that are not empty; None where there is no file."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        filled = (_as_line(line) for line in stream if line.strip())
        return b"".join(islice(filled, count))
