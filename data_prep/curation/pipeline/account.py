"""The account of a block: what came in, what stayed, what was dropped for which reason.

Every block of a pipeline keeps its own, a file a task. Nothing leaves a block uncounted: what came
in is what stayed and what was dropped, by source.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import xxhash
import zstandard
from datatrove.data import Document

from data_prep.curation.pipeline.documents import language_of, source_of
from data_prep.indexed import Writable
from megatron_soaes.errors import UserError
from megatron_soaes.files import atomic_file, write_json

SAMPLES = 20
"""Dropped documents a reason that are shown."""
SAMPLE_CHARACTERS = 600
SCORE_BINS = 20

Tally = list[int]
"""Documents and characters."""
Sample = dict[str, Any]


@dataclass
class Account:
    """What a block did. All fields add up over tasks; `samples` are those of the smallest hashes,
    so they do not depend on how documents fall into tasks."""

    read: dict[str, Tally] = field(default_factory=dict)
    """By source."""
    kept: dict[str, Tally] = field(default_factory=dict)
    """By source."""
    dropped: dict[str, dict[str, Tally]] = field(default_factory=dict)
    """By source, by reason."""
    edits: dict[str, dict[str, int]] = field(default_factory=dict)
    """Places changed in documents that stayed or went on, by source, by kind."""
    masked: dict[str, dict[str, int]] = field(default_factory=dict)
    """Personal data replaced in documents that went on, by source, by kind."""
    languages: dict[str, Tally] = field(default_factory=dict)
    """Of what stayed."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Documents that stayed, by the power of two that their characters reach."""
    scores: dict[str, list[int]] = field(default_factory=dict)
    """Documents that stayed, by score, in `SCORE_BINS` equal steps from 0 to 1."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Lines that hold no document, by reason."""
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """Dropped documents by reason, the smallest hash first."""

    def keep(self, document: Document, read_characters: int) -> None:
        """Count a document that stays; it had `read_characters` when it came in."""
        source, characters = source_of(document), len(document.text)
        _add(self.read, source, read_characters)
        _add(self.kept, source, characters)
        _add(self.languages, language_of(document), characters)
        length = str(1 << (characters.bit_length() - 1) if characters else 0)
        self.lengths[length] = self.lengths.get(length, 0) + 1
        for name, score in document.metadata.get("scores", {}).items():
            if isinstance(score, float):
                bins = self.scores.setdefault(name, [0] * SCORE_BINS)
                bins[min(int(score * SCORE_BINS), SCORE_BINS - 1)] += 1

    def drop(self, document: Document, read: str, reason: str, why: Mapping[str, Any]) -> None:
        """Count a document that goes, with the text it came in with; `why` explains its case."""
        source = source_of(document)
        _add(self.read, source, len(read))
        _add(self.dropped.setdefault(source, {}), reason, len(read))
        rank = xxhash.xxh3_64_intdigest(document.id)
        samples = self.samples.setdefault(reason, [])
        if len(samples) == SAMPLES and rank >= samples[-1]["rank"]:
            return
        sample = {"rank": rank, "id": document.id, "source": source, **why}
        samples.append({**sample, "text": read[:SAMPLE_CHARACTERS]})
        samples.sort(key=_rank)
        del samples[SAMPLES:]

    def changed(self, source: str, edits: Mapping[str, int], masked: Mapping[str, int]) -> None:
        """Count the changes made in a text that goes on, by kind."""
        for counts, by_source in ((edits, self.edits), (masked, self.masked)):
            if counts:
                _merge(by_source.setdefault(source, {}), counts)

    def add(self, other: Account) -> None:
        """Add the account of another task of the same block."""
        for mine, theirs in zip(self._sums(), other._sums(), strict=True):
            _merge(mine, theirs)
        for reason, samples in other.samples.items():
            both = heapq.merge(self.samples.get(reason, []), samples, key=_rank)
            self.samples[reason] = list(both)[:SAMPLES]

    def totals(self, side: str) -> Tally:
        """Documents and characters of one of `read`, `kept` over all sources."""
        return _sum(getattr(self, side).values())

    def _sums(self) -> list[dict[str, Any]]:
        return [getattr(self, name) for name in asdict(Account()) if name != "samples"]


class Entry:
    """An account being kept, and the list of all documents that are dropped."""

    def __init__(self, account: Account, stream: Writable) -> None:
        self.account = account
        self._stream = stream

    def drop(self, document: Document, read: str, reason: str, **why: Any) -> None:
        """Drop a document that came in with the text `read`."""
        self.account.drop(document, read, reason, why)
        row = {"id": document.id, "source": source_of(document), "reason": reason, **why}
        self._stream.write(orjson.dumps(row) + b"\n")


@contextmanager
def open_entry(directory: Path, task: int) -> Iterator[Entry]:
    """Keep the account of a task in `directory`; both files appear when the block ends well.

    `NNNNN.json` is the account, `NNNNN.dropped.jsonl.zst` a line for every dropped document.
    """
    directory.mkdir(parents=True, exist_ok=True)
    account = Account()
    with (
        atomic_file(directory / f"{task:05d}.dropped.jsonl.zst", "wb") as file,
        zstandard.ZstdCompressor().stream_writer(file, closefd=False) as stream,
    ):
        yield Entry(account, stream)
    write_json(directory / f"{task:05d}.json", asdict(account))


def total_account(directory: Path, tasks: int) -> Account:
    """The accounts of all tasks of a block, added up.

    Raises UserError when one is missing, and when what came in is not what stayed and what went.
    """
    total = Account()
    for task in range(tasks):
        file = directory / f"{task:05d}.json"
        if not file.is_file():
            raise UserError(
                file, "no account of this task", "one for each task", "Start the command again."
            )
        total.add(Account(**orjson.loads(file.read_bytes())))
    for source, (documents, _) in total.read.items():
        stayed = total.kept.get(source, [0, 0])[0]
        gone = _sum(total.dropped.get(source, {}).values())[0]
        if documents != stayed + gone:
            raise UserError(
                f"{directory}: {source}", f"{documents} documents in",
                f"the {stayed} kept and {gone} dropped", "Remove the output and curate again.",
            )  # fmt: skip
    return total


def _add(tallies: dict[str, Tally], name: str, characters: int) -> None:
    tally = tallies.setdefault(name, [0, 0])
    tally[0] += 1
    tally[1] += characters


def _sum(tallies: Any) -> Tally:
    total = [0, 0]
    for documents, characters in tallies:
        total[0] += documents
        total[1] += characters
    return total


def _merge(mine: dict[str, Any], theirs: Mapping[str, Any]) -> None:
    for name, value in theirs.items():
        if isinstance(value, dict):
            _merge(mine.setdefault(name, {}), value)
        elif isinstance(value, list):
            known = mine.setdefault(name, [0] * len(value))
            mine[name] = [a + b for a, b in zip(known, value, strict=True)]
        else:
            mine[name] = mine.get(name, 0) + value


def _rank(sample: Sample) -> tuple[int, str]:
    return sample["rank"], sample["id"]
