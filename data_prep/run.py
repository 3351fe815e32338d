"""The steps that every conversion takes: checks, finished ranges, the stop and the way on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from data_prep.encoders import Encoder
from data_prep.progress import Progress
from data_prep.ranges import RANGE_BYTES, InputFile, InputRange
from data_prep.shards import BadLineError, CountsT, ShardJob, read_counts
from data_prep.tokenizer import TokenizerInfo
from data_prep.workers import run_ranges
from megatron_soaes.errors import UserError

SAMPLE_CHARACTERS = 500_000

Log = Callable[[str], None]


class RunOptions(Protocol):
    """The options of every conversion."""

    @property
    def workers(self) -> int: ...
    @property
    def partitions(self) -> int | None: ...
    @property
    def log_interval(self) -> int: ...
    @property
    def overwrite(self) -> bool: ...
    def targets(self) -> dict[str, Path]: ...


def check_numbers(options: RunOptions) -> None:
    """Raise `UserError` for a number of workers, ranges or documents below one."""
    for flag, value in (
        ("--workers", options.workers),
        ("--partitions", 1 if options.partitions is None else options.partitions),
        ("--log-interval", options.log_interval),
    ):
        if value < 1:
            raise UserError(flag, str(value), "1 or more", "Raise it.")


def check_targets(options: RunOptions, files: list[InputFile], resuming: bool) -> None:
    """Make the folders of the outputs.

    Raises `UserError` when an output is an input or another output, or exists, neither to be
    replaced nor the work of the run that is resumed.
    """
    protected = {file.path.resolve() for file in files}
    for target in options.targets().values():
        if target.resolve() in protected:
            raise UserError(
                target, "an input of this run", "a new file", "Choose another name for the output."
            )
        protected.add(target.resolve())
        if target.exists() and not options.overwrite and not resuming:
            raise UserError(
                target,
                "an existing file",
                "no output of an earlier run",
                "Choose another --output-prefix, or replace it with --overwrite.",
            )
        target.parent.mkdir(parents=True, exist_ok=True)


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


def first_texts(batches: Iterable[Iterable[str]]) -> list[str]:
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


def describe_inputs(files: list[InputFile]) -> list[dict[str, Any]]:
    """What says that a corpus is the same one."""
    return [
        {"path": str(file.path.resolve()), "size": file.size, "modified_ns": file.modified_ns}
        for file in files
    ]


def describe_code(
    encoder: Encoder, packages: tuple[str, ...], range_bytes: int = RANGE_BYTES
) -> dict[str, Any]:
    """What else the bytes of a shard depend on."""
    return {
        "backend": encoder.name,
        "range_bytes": range_bytes,
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_ranges(
    options: RunOptions,
    job: ShardJob[CountsT],
    ranges: list[InputRange],
    encoder: Encoder,
    log: Log,
) -> int:
    """Write the shards that are not there yet; returns how many were there.

    Raises `UserError` for the first bad line, by its place in the file, unless the job collects
    them.
    """
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
def telling_how_to_go_on(
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


def check_unchanged(files: list[InputFile]) -> None:
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
