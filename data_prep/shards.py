"""One range of a corpus as files: what every kind of conversion has in common.

A shard is a directory that appears whole, so a range is finished exactly when its directory exists.
Beside the files of the job it holds `bad.jsonl`, `checksums.json` and `counts.json`.
"""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy.typing as npt
import orjson

from data_prep.datasets.checksums import HashedStream, Piece
from data_prep.documents import BadDocumentError
from data_prep.encoders import Encoder
from data_prep.ranges import InputRange
from data_prep.tokenizer import TokenizerInfo
from megatron_soaes.failpoints import failpoint
from megatron_soaes.files import atomic_directory, write_json

CHECKSUMS = "checksums.json"
Report = Callable[[int, int], None]
"""Called after each batch with the bytes read and the documents written since the last call."""


@dataclass
class Counts:
    """What was read and written; a job adds its own counts, as numbers or as numbers by name."""

    lines: int = 0
    blank: int = 0
    documents: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    """By reason."""

    def add(self, other: Counts) -> None:
        """Add the counts of another batch or range of the same job."""
        for part in fields(self):
            mine, added = getattr(self, part.name), getattr(other, part.name)
            if isinstance(mine, dict):
                for name, count in added.items():
                    mine[name] = mine.get(name, 0) + count
            else:
                setattr(self, part.name, mine + added)


CountsT = TypeVar("CountsT", bound=Counts)


@dataclass(frozen=True)
class EncodedBatch(Generic[CountsT]):
    """Consecutive documents of a range, ready to be written.

    `arrays` are appended to the job's files, in their order; `counts` leaves `bad` out.
    """

    arrays: tuple[npt.NDArray[Any], ...]
    counts: CountsT
    bad: list[tuple[int, BadDocumentError]]
    """Bad lines with their number in the range, from 1, rising."""
    size: int
    """Bytes on the disk."""


@dataclass(frozen=True)
class ShardJob(ABC, Generic[CountsT]):
    """What all ranges of a run have in common; sent to every worker process."""

    directory: Path
    tokenizer: TokenizerInfo
    collect_bad: bool
    """Collect bad lines in the shard; otherwise the first one raises `BadLineError`."""

    @property
    @abstractmethod
    def files(self) -> tuple[str, ...]:
        """The names of the binary files in a shard."""

    @abstractmethod
    def no_counts(self) -> CountsT:
        """This job's counts, all zero."""

    @abstractmethod
    def encode_range(self, source: InputRange, encoder: Encoder) -> Iterator[EncodedBatch[CountsT]]:
        """Read and encode a range. Raises `UserError` for a damaged file."""

    @abstractmethod
    def rule(self, problem: BadDocumentError) -> tuple[str, str]:
        """What a bad line should have been, and what to do about it."""

    def shard(self, source: InputRange) -> Path:
        """The directory of a range's shard."""
        return self.directory / f"range-{source.index:06d}"


class BadLineError(Exception):
    """A bad line in a run that stops at bad lines; `number` is its line in the range, from 1."""

    def __init__(self, source: InputRange, number: int, problem: BadDocumentError) -> None:
        super().__init__(source, number, problem)
        self.source = source
        self.number = number
        self.problem = problem


def write_shard(
    job: ShardJob[CountsT], source: InputRange, encoder: Encoder, report: Report
) -> None:
    """Encode one range. Raises `BadLineError`, and `UserError` for a damaged file."""
    with atomic_directory(job.shard(source)) as shard:
        counts = job.no_counts()
        with ExitStack() as files:
            outputs = [
                HashedStream(files.enter_context((shard / name).open("wb"))) for name in job.files
            ]
            bad_lines = files.enter_context((shard / "bad.jsonl").open("wb"))
            for batch in job.encode_range(source, encoder):
                if batch.bad and not job.collect_bad:
                    raise BadLineError(source, *batch.bad[0])
                for number, problem in batch.bad:
                    bad_lines.write(_bad_record(number, problem))
                    counts.bad[problem.reason] = counts.bad.get(problem.reason, 0) + 1
                for output, array in zip(outputs, batch.arrays, strict=True):
                    output.write(array)
                failpoint("mid-dataset-shard")
                counts.add(batch.counts)
                report(batch.size, batch.counts.documents)
        pieces = {name: output.piece for name, output in zip(job.files, outputs, strict=True)}
        write_json(shard / CHECKSUMS, pieces)
        write_json(shard / "counts.json", asdict(counts))


def _bad_record(number: int, problem: BadDocumentError) -> bytes:
    """One line of `bad.jsonl`; a line that is not UTF-8 is kept as base64."""
    record = {"line": number, "reason": problem.reason, "found": problem.found}
    try:
        record["content"] = problem.raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        record["content_base64"] = base64.b64encode(problem.raw).decode("ascii")
    return orjson.dumps(record) + b"\n"


def read_counts(job: ShardJob[CountsT], source: InputRange) -> CountsT:
    """The counts of a finished range."""
    counts = (job.shard(source) / "counts.json").read_text(encoding="utf-8")
    return replace(job.no_counts(), **json.loads(counts))


def total_counts(job: ShardJob[CountsT], ranges: Iterable[InputRange]) -> CountsT:
    """The sum over finished ranges."""
    total = job.no_counts()
    for source in ranges:
        total.add(read_counts(job, source))
    return total


def merge_bad_lines(
    stream: IO[bytes], job: ShardJob[CountsT], ranges: Iterable[InputRange]
) -> None:
    """Write the bad lines of all ranges in corpus order, with their file and their line in it."""
    path, first = None, 0
    for source in ranges:
        if source.path != path:
            path, first = source.path, 0
        with (job.shard(source) / "bad.jsonl").open("rb") as bad_lines:
            for line in bad_lines:
                record = orjson.loads(line)
                record["line"] += first
                stream.write(orjson.dumps({"file": str(source.path), **record}) + b"\n")
        first += read_counts(job, source).lines


def shard_pieces(
    job: ShardJob[CountsT], ranges: Iterable[InputRange], name: str
) -> Iterator[Piece]:
    """The checksum of the file `name` of every range, in corpus order."""
    for source in ranges:
        size, digest = json.loads((job.shard(source) / CHECKSUMS).read_text(encoding="utf-8"))[name]
        yield size, digest


def shard_files(job: ShardJob[CountsT], ranges: Iterable[InputRange], name: str) -> Iterator[Path]:
    """The file `name` of every range, in corpus order."""
    return (job.shard(source) / name for source in ranges)
