"""One range of a corpus as files, and the files of all ranges as one dataset.

A shard is a directory that appears whole, so a range is finished exactly when its directory exists.
It holds, for the n-th key, `n.tokens` (the bytes of a `.bin`) and `n.lengths` (int32, the tokens of
every document), and `bad.jsonl` and `counts.json`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import orjson

from data_prep.documents import BadDocumentError, Batch
from data_prep.encoders import Encoder
from data_prep.indexed import TokenLengths, concatenate, token_dtype, write_index
from data_prep.ranges import InputRange
from data_prep.readers import read_batches
from data_prep.tokenizer import TokenizerInfo
from megatron_soaes.files import atomic_directory, write_json

SHARD_FILES = ("tokens", "lengths")

Report = Callable[[int, int], None]
"""Called after each batch with the bytes read and the documents written since the last call."""


@dataclass(frozen=True)
class ShardJob:
    """What all ranges of a run have in common."""

    directory: Path
    tokenizer: TokenizerInfo
    keys: tuple[str, ...]
    append_eod: bool
    collect_bad: bool
    """Collect bad lines in the shard; otherwise the first one raises `BadLineError`."""

    def shard(self, source: InputRange) -> Path:
        """The directory of a range's shard."""
        return self.directory / f"range-{source.index:06d}"


@dataclass
class Counts:
    """What was read and written; `tokens` and `sequences` are by key, `bad` by reason."""

    lines: int = 0
    blank: int = 0
    documents: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        """Add the counts of another range."""
        self.lines += other.lines
        self.blank += other.blank
        self.documents += other.documents
        for name in ("tokens", "sequences", "bad"):
            mine = getattr(self, name)
            for key, count in getattr(other, name).items():
                mine[key] = mine.get(key, 0) + count


class BadLineError(Exception):
    """A bad line in a run that stops at bad lines; `number` is its line in the range, from 1."""

    def __init__(self, source: InputRange, number: int, problem: BadDocumentError) -> None:
        super().__init__(source, number, problem)
        self.source = source
        self.number = number
        self.problem = problem


def write_shard(job: ShardJob, source: InputRange, encoder: Encoder, report: Report) -> None:
    """Encode one range. Raises `BadLineError`, and `UserError` for a damaged file."""
    with atomic_directory(job.shard(source)) as shard:
        counts = Counts()
        with ExitStack() as files:
            outputs = [
                tuple(
                    files.enter_context((shard / f"{n}.{kind}").open("wb")) for kind in SHARD_FILES
                )
                for n in range(len(job.keys))
            ]
            bad_lines = files.enter_context((shard / "bad.jsonl").open("wb"))
            for batch in read_batches(source, job.keys):
                if batch.bad and not job.collect_bad:
                    raise BadLineError(source, *batch.bad[0])
                bad_lines.writelines(_bad_record(number, found) for number, found in batch.bad)
                added = _count_batch(batch)
                for key, (token_file, length_file) in zip(job.keys, outputs, strict=True):
                    tokens, lengths = _encode(job, encoder, batch.texts[key])
                    token_file.write(tokens.data)
                    length_file.write(lengths.data)
                    added.tokens[key] = len(tokens)
                    added.sequences[key] = int(np.count_nonzero(lengths))
                counts.add(added)
                report(batch.size, added.documents)
        write_json(shard / "counts.json", asdict(counts))


def _count_batch(batch: Batch) -> Counts:
    bad: dict[str, int] = {}
    for _, problem in batch.bad:
        bad[problem.reason] = bad.get(problem.reason, 0) + 1
    documents = batch.lines - batch.blank - len(batch.bad)
    return Counts(batch.lines, batch.blank, documents, bad=bad)


def _encode(
    job: ShardJob, encoder: Encoder, texts: list[str]
) -> tuple[npt.NDArray[Any], TokenLengths]:
    """Tokens of all texts in a row, in the dtype of the `.bin`, and int32 [len(texts)] lengths.

    As in Megatron's tool, the end-of-document token follows only a text that has tokens.
    """
    ids, lengths = encoder.encode_batch(texts)
    dtype = token_dtype(job.tokenizer.vocab_size)
    if not job.append_eod:
        return ids.astype(dtype), lengths.astype("<i4")
    lengths = lengths + (lengths > 0)
    tokens = np.empty(int(lengths.sum()), dtype=dtype)
    is_text = np.ones(len(tokens), dtype=bool)
    is_text[np.cumsum(lengths[lengths > 0]) - 1] = False
    tokens[is_text] = ids
    tokens[~is_text] = job.tokenizer.eod_id
    return tokens, lengths.astype("<i4")


def _bad_record(number: int, problem: BadDocumentError) -> bytes:
    """One line of `bad.jsonl`; a line that is not UTF-8 is kept as base64."""
    record = {"line": number, "reason": problem.reason, "found": problem.found}
    try:
        record["content"] = problem.raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        record["content_base64"] = base64.b64encode(problem.raw).decode("ascii")
    return orjson.dumps(record) + b"\n"


def read_counts(job: ShardJob, source: InputRange) -> Counts:
    """The counts of a finished range."""
    return Counts(**json.loads((job.shard(source) / "counts.json").read_text(encoding="utf-8")))


def merge_tokens(stream: IO[bytes], job: ShardJob, ranges: list[InputRange], key: str) -> None:
    """Write the `.bin` of one key: the shards in corpus order."""
    concatenate(stream, _shard_files(job, ranges, key, "tokens"))


def merge_index(
    stream: IO[bytes], job: ShardJob, ranges: list[InputRange], key: str, counts: Counts
) -> None:
    """Write the `.idx` of one key; `counts` is the sum over `ranges`."""

    def document_lengths() -> Iterator[TokenLengths]:
        for path in _shard_files(job, ranges, key, "lengths"):
            yield np.fromfile(path, dtype="<i4")

    dtype = token_dtype(job.tokenizer.vocab_size)
    write_index(stream, dtype, counts.documents, counts.sequences[key], document_lengths)


def merge_bad_lines(stream: IO[bytes], job: ShardJob, ranges: list[InputRange]) -> None:
    """Write the bad lines of all ranges in corpus order, with their file and their line in it."""
    for source, first in zip(ranges, _lines_before(job, ranges), strict=True):
        with (job.shard(source) / "bad.jsonl").open("rb") as bad_lines:
            for line in bad_lines:
                record = orjson.loads(line)
                record["line"] += first
                stream.write(orjson.dumps({"file": str(source.path), **record}) + b"\n")


def _lines_before(job: ShardJob, ranges: list[InputRange]) -> Iterator[int]:
    """For each range, the lines of its file that stand in earlier (finished) ranges."""
    path, lines = None, 0
    for source in ranges:
        if source.path != path:
            path, lines = source.path, 0
        yield lines
        lines += read_counts(job, source).lines


def _shard_files(
    job: ShardJob, ranges: Iterable[InputRange], key: str, kind: str
) -> Iterator[Path]:
    number = job.keys.index(key)
    return (job.shard(source) / f"{number}.{kind}" for source in ranges)
