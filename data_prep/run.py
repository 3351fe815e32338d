"""The steps that every conversion takes: plan, encode range by range, merge, publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic

from tokenizers import Tokenizer

from data_prep.encoders import Encoder, choose_encoder
from data_prep.options import BAD_LINES, RunOptions, check_targets
from data_prep.progress import Progress
from data_prep.ranges import RANGE_BYTES, InputFile, InputRange, find_inputs, plan_ranges
from data_prep.shards import (
    BadLineError,
    CountsT,
    ShardJob,
    merge_bad_lines,
    read_counts,
    total_counts,
)
from data_prep.tokenizer import TokenizerInfo
from data_prep.work_directory import (
    is_merged,
    merging,
    open_work_directory,
    publish,
    work_directory,
)
from data_prep.workers import run_ranges
from megatron_soaes.errors import UserError

SAMPLE_CHARACTERS = 500_000
TOKENIZER_PACKAGES = ("fastokens", "tokenizers")

Log = Callable[[str], None]


@dataclass(frozen=True)
class RunSummary:
    """How a run went."""

    backend: str
    backend_reason: str
    ranges: int
    ranges_reused: int
    """Ranges that an earlier, stopped run had finished."""
    bytes_read: int
    """Bytes on the disk of all ranges."""
    seconds: float
    """Wall time of this run; with reused ranges not of all the work."""


@dataclass(frozen=True)
class Plan:
    """What a run reads, and where it works."""

    options: RunOptions
    directory: Path
    files: list[InputFile]
    ranges: list[InputRange]
    range_bytes: int
    started: float
    """`time.monotonic` when the run began."""


def plan_run(
    options: RunOptions, keys: tuple[str, ...] | None = None, range_bytes: int | None = None
) -> Plan:
    """Find the inputs, check the outputs and cut the ranges; see `plan_ranges`.

    Raises `UserError` for inputs that cannot be read or cut, and outputs that cannot be written.
    """
    started = time.monotonic()
    directory = work_directory(options.output_prefix)
    files = find_inputs(options.inputs)
    check_targets(options, files, resuming=is_merged(directory))
    ranges = plan_ranges(files, keys, options.partitions, range_bytes)
    return Plan(options, directory, files, ranges, range_bytes or RANGE_BYTES, started)


@dataclass(frozen=True)
class Run(Generic[CountsT]):
    """A planned run with its job and its encoder."""

    plan: Plan
    job: ShardJob[CountsT]
    encoder: Encoder
    encoder_reason: str
    log: Log

    def fingerprint(
        self, settings: dict[str, Any], packages: tuple[str, ...] = TOKENIZER_PACKAGES
    ) -> dict[str, Any]:
        """Everything the bytes of a shard depend on; `settings` are those of the kind of job."""
        info = self.job.tokenizer
        return {
            **settings,
            "inputs": _describe_inputs(self.plan.files),
            "partitions": self.plan.options.partitions,
            "skip_bad_lines": self.plan.options.collect_bad,
            "tokenizer": {**asdict(info), "path": str(info.path.resolve())},
            "backend": self.encoder.name,
            "range_bytes": self.plan.range_bytes,
            "packages": {name: _version(name) for name in packages},
        }

    @contextmanager
    def converting(self, fingerprint: dict[str, Any]) -> Iterator[tuple[CountsT, int]]:
        """Write the missing shards, leave the block to check and merge them, publish the outputs.

        Yields the counts of all ranges, and how many of these an earlier run had finished. A
        `UserError`, of the block's too, leaves no output and no work directory behind; whatever
        else ends the run leaves the finished ranges for the next one with this fingerprint.
        """
        plan, job = self.plan, self.job
        with (
            _telling_how_to_go_on(job, plan.ranges, self.log),
            open_work_directory(plan.directory, fingerprint, plan.options.overwrite),
        ):
            reused = _write_ranges(plan, job, self.encoder, self.log)
            counts = total_counts(job, plan.ranges)
            _check_unchanged(plan.files)
            yield counts, reused
            publish(plan.directory, plan.options.targets())

    def merge(self, write: Callable[[Path], None]) -> None:
        """Have `write` put all outputs but the bad lines in a directory, unless it is done."""
        if is_merged(self.plan.directory):
            return
        with merging(self.plan.directory) as outputs:
            write(outputs)
            if self.plan.options.collect_bad:
                with (outputs / BAD_LINES).open("wb") as stream:
                    merge_bad_lines(stream, self.job, self.plan.ranges)

    def summary(self, reused: int) -> RunSummary:
        """How the run went until now."""
        return RunSummary(
            backend=self.encoder.name,
            backend_reason=self.encoder_reason,
            ranges=len(self.plan.ranges),
            ranges_reused=reused,
            bytes_read=sum(source.size for source in self.plan.ranges),
            seconds=round(time.monotonic() - self.plan.started, 3),
        )


def start_run(
    plan: Plan,
    job: ShardJob[CountsT],
    reference: Tokenizer,
    texts: Iterable[Iterable[str]],
    log: Log,
) -> Run[CountsT]:
    """Choose the encoder; `texts` are those of the corpus, read as far as the choice needs them."""
    encoder, reason = choose_encoder(
        job.tokenizer, reference, plan.options.backend, lambda: _first_texts(texts)
    )
    log(f"encoder: {reason}")
    return Run(plan, job, encoder, reason, log)


def check_token_type(info: TokenizerInfo) -> None:
    """Raise `UserError` where the token type that Megatron chooses cannot hold an id."""
    limit = 2**16 if info.vocab_size < 65500 else 2**31
    if info.largest_id >= limit:
        raise UserError(
            info.path,
            f"the id {info.largest_id} in a vocabulary of {info.vocab_size} tokens",
            f"ids below {limit}, which is what the token type Megatron chooses can hold",
            "Number the tokens without gaps.",
        )


def _first_texts(batches: Iterable[Iterable[str]]) -> list[str]:
    """The first texts of a corpus, `SAMPLE_CHARACTERS` of its first batch that has any."""
    for batch in batches:
        texts: list[str] = []
        left = SAMPLE_CHARACTERS
        for text in batch:
            if left <= 0:
                break
            texts.append(text[:left])
            left -= len(text)
        if texts:
            return texts
    return []


def _describe_inputs(files: list[InputFile]) -> list[dict[str, Any]]:
    """What says that a corpus is the same one."""
    return [
        {"path": str(file.path.resolve()), "size": file.size, "modified_ns": file.modified_ns}
        for file in files
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write_ranges(plan: Plan, job: ShardJob[CountsT], encoder: Encoder, log: Log) -> int:
    """Write the shards that are not there yet; returns how many were there.

    Raises `UserError` for the first bad line, by its place in the file, unless the job collects
    them.
    """
    ranges, options = plan.ranges, plan.options
    missing = [source for source in ranges if not job.shard(source).exists()]
    reused = len(ranges) - len(missing)
    if reused:
        log(f"{reused} of {len(ranges)} ranges were finished earlier and are kept")
    progress = Progress(sum(source.size for source in missing), options.log_interval, log)
    try:
        run_ranges(job, missing, encoder, options.workers, progress.advance)
    except BadLineError as bad:
        earlier = (s for s in ranges[: bad.source.index] if s.path == bad.source.path)
        lines = sum(read_counts(job, source).lines for source in earlier)
        place = bad.source.place(lines + bad.number)
        raise UserError(place, bad.problem.found, *job.rule(bad.problem)) from bad
    return reused


@contextmanager
def _telling_how_to_go_on(
    job: ShardJob[CountsT], ranges: list[InputRange], log: Log
) -> Iterator[None]:
    """Log what a run that is interrupted inside the block leaves for the next one."""
    try:
        yield
    except KeyboardInterrupt:
        done = sum(job.shard(source).exists() for source in ranges)
        log(
            f"stopped: {done} of {len(ranges)} ranges are finished and kept in {job.directory}; "
            "the same command goes on from there"
        )
        raise


def _check_unchanged(files: list[InputFile]) -> None:
    """Raise `UserError` when an input is no longer what it was when the run was planned."""
    for file in files:
        status = file.path.stat()
        if (status.st_size, status.st_mtime_ns) != (file.size, file.modified_ns):
            raise UserError(
                file.path,
                "a file that changed while it was converted",
                "inputs that rest",
                "Convert again when nothing writes to it.",
            )
