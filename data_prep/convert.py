"""A text corpus into Megatron indexed datasets: plan, encode range by range, merge, publish.

The output depends on the inputs, the tokenizer and the options that select text, never on the
number of workers, on where ranges are cut, or on how often the run was stopped and started again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_prep.encoders import BackendChoice, Encoder, choose_encoder
from data_prep.progress import Progress
from data_prep.ranges import RANGE_BYTES, InputFile, InputRange, find_inputs, plan_ranges
from data_prep.readers import read_batches
from data_prep.shards import (
    BadLineError,
    Counts,
    ShardJob,
    merge_bad_lines,
    merge_index,
    merge_tokens,
    read_counts,
)
from data_prep.tokenizer import TokenizerInfo, load_tokenizer
from data_prep.work_directory import (
    is_merged,
    merging,
    open_work_directory,
    publish,
    work_directory,
)
from data_prep.workers import run_ranges
from megatron_soaes.errors import UserError
from megatron_soaes.files import write_json

SAMPLE_CHARACTERS = 500_000
BAD_LINES = "bad-lines.jsonl"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert; the command-line flags of `preprocess_data.py` under the same names."""

    inputs: tuple[str, ...]
    output_prefix: Path
    tokenizer_model: Path
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    include_special_tokens: bool = True
    workers: int = 1
    partitions: int | None = None
    log_interval: int = 1000
    backend: BackendChoice = "auto"
    skip_bad_lines: Path | None = None
    overwrite: bool = False

    def dataset(self, key: str) -> Path:
        """The prefix of the dataset of one JSON key, as a recipe or Megatron names it."""
        return self.output_prefix.with_name(f"{self.output_prefix.name}_{key}_document")

    def targets(self) -> dict[str, Path]:
        """The outputs in the order in which they appear, by their names in the work directory."""
        targets: dict[str, Path] = {}
        for number, key in enumerate(self.json_keys):
            for suffix in ("bin", "idx"):
                targets[f"{number}.{suffix}"] = Path(f"{self.dataset(key)}.{suffix}")
        if self.skip_bad_lines is not None:
            targets[BAD_LINES] = self.skip_bad_lines
        targets[MANIFEST] = Path(f"{self.output_prefix}.manifest.json")
        return targets


@dataclass(frozen=True)
class ConvertSummary:
    """What a run read and wrote. `tokens` and `empty_documents` are by JSON key."""

    datasets: dict[str, Path]
    """The prefix of each key's `.bin` and `.idx`."""
    manifest: Path
    documents: int
    tokens: dict[str, int]
    empty_documents: dict[str, int]
    """Texts without tokens: documents without a sequence."""
    blank_lines: int
    bad_lines: dict[str, int]
    """By reason; they stand in the file of `skip_bad_lines`."""
    backend: str
    backend_reason: str
    ranges: int
    ranges_reused: int
    """Ranges that an earlier, stopped run had finished."""
    bytes_read: int
    """Bytes on the disk of all ranges."""
    seconds: float
    """Wall time of this run; with reused ranges not of all the work."""


def convert(
    options: ConvertOptions, log: Callable[[str], None] = lambda line: print(line, file=sys.stderr)
) -> ConvertSummary:
    """Convert a corpus; the outputs appear whole, the manifest last.

    Raises `UserError` for bad options and bad input, with no output and no work directory left
    behind. On KeyboardInterrupt, or when the process is killed, the finished ranges stay in the
    work directory beside the outputs and the same options go on from there.
    """
    started = time.monotonic()
    _check_options(options)
    directory = work_directory(options.output_prefix)
    files = find_inputs(options.inputs)
    _check_targets(options, files, resuming=is_merged(directory))
    ranges = plan_ranges(files, options.json_keys, options.partitions)
    info, reference = load_tokenizer(options.tokenizer_model, options.include_special_tokens)
    _check_tokenizer(options, info)
    encoder, reason = choose_encoder(
        info, reference, options.backend, lambda: _sample(ranges, options.json_keys)
    )
    log(f"encoder: {reason}")
    job = ShardJob(
        directory, info, options.json_keys, options.append_eod, options.skip_bad_lines is not None
    )
    fingerprint = _fingerprint(options, files, info, encoder)
    try:
        with open_work_directory(directory, fingerprint, options.overwrite):
            reused = _encode(options, job, ranges, encoder, log)
            counts = _total(job, ranges)
            _check_outcome(options, files, counts)
            summary = _summarise(
                options,
                ranges,
                counts,
                encoder=encoder,
                reason=reason,
                reused=reused,
                started=started,
            )
            if not is_merged(directory):
                _merge(options, job, ranges, counts, {**_manifest(summary), "run": fingerprint})
            publish(directory, options.targets())
    except KeyboardInterrupt:
        done = sum(job.shard(source).exists() for source in ranges)
        log(
            f"stopped: {done} of {len(ranges)} ranges are finished and kept in {directory}; "
            "the same command goes on from there"
        )
        raise
    return summary


def _summarise(
    options: ConvertOptions,
    ranges: list[InputRange],
    counts: Counts,
    *,
    encoder: Encoder,
    reason: str,
    reused: int,
    started: float,
) -> ConvertSummary:
    return ConvertSummary(
        datasets={key: options.dataset(key) for key in options.json_keys},
        manifest=options.targets()[MANIFEST],
        documents=counts.documents,
        tokens=counts.tokens,
        empty_documents={key: counts.documents - n for key, n in counts.sequences.items()},
        blank_lines=counts.blank,
        bad_lines=counts.bad,
        backend=encoder.name,
        backend_reason=reason,
        ranges=len(ranges),
        ranges_reused=reused,
        bytes_read=sum(source.size for source in ranges),
        seconds=round(time.monotonic() - started, 3),
    )


def _check_options(options: ConvertOptions) -> None:
    for flag, value in (
        ("--workers", options.workers),
        ("--partitions", 1 if options.partitions is None else options.partitions),
        ("--log-interval", options.log_interval),
    ):
        if value < 1:
            raise UserError(flag, str(value), "1 or more", "Raise it.")
    keys = options.json_keys
    if not keys or len(set(keys)) < len(keys) or any("/" in key or not key for key in keys):
        raise UserError(
            "--json-keys",
            " ".join(map(repr, keys)) or "none",
            "different keys that can stand in a file name",
            "Name each key once; rename keys with a '/' in the corpus.",
        )


def _check_targets(options: ConvertOptions, files: list[InputFile], resuming: bool) -> None:
    targets = options.targets().values()
    protected = {file.path.resolve() for file in files}
    for target in targets:
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


def _check_tokenizer(options: ConvertOptions, info: TokenizerInfo) -> None:
    if options.append_eod and info.eod_id is None:
        raise UserError(
            info.path.with_name("tokenizer_config.json"),
            "no eos_token",
            "the token that --append-eod puts after each document",
            "Add eos_token to that file, or leave --append-eod out.",
        )
    limit = 2**16 if info.vocab_size < 65500 else 2**31
    if info.largest_id >= limit:
        raise UserError(
            info.path,
            f"the id {info.largest_id} in a vocabulary of {info.vocab_size} tokens",
            f"ids below {limit}, which is what the token type Megatron chooses can hold",
            "Number the tokens without gaps.",
        )


def _sample(ranges: list[InputRange], keys: tuple[str, ...]) -> list[str]:
    """The first documents of the corpus, `SAMPLE_CHARACTERS` of them."""
    for source in ranges:
        for batch in read_batches(source, keys):
            texts: list[str] = []
            left = SAMPLE_CHARACTERS
            for text in (text for column in batch.texts.values() for text in column):
                if left <= 0:
                    break
                texts.append(text[:left])
                left -= len(text)
            if texts:
                return texts
    return []


def _fingerprint(
    options: ConvertOptions, files: list[InputFile], info: TokenizerInfo, encoder: Encoder
) -> dict[str, Any]:
    """Everything the bytes of a shard depend on."""
    return {
        "inputs": [
            {"path": str(file.path.resolve()), "size": file.size, "modified_ns": file.modified_ns}
            for file in files
        ],
        "json_keys": options.json_keys,
        "append_eod": options.append_eod,
        "partitions": options.partitions,
        "skip_bad_lines": options.skip_bad_lines is not None,
        "tokenizer": {**asdict(info), "path": str(info.path.resolve())},
        "backend": encoder.name,
        "range_bytes": RANGE_BYTES,
        "packages": {name: _version(name) for name in ("fastokens", "tokenizers")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _encode(
    options: ConvertOptions,
    job: ShardJob,
    ranges: list[InputRange],
    encoder: Encoder,
    log: Callable[[str], None],
) -> int:
    """Write the shards that are not there yet; returns how many were there."""
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
        raise UserError(
            bad.source.place(lines + bad.number),
            bad.problem.found,
            f"a JSON object with a string at {', '.join(map(repr, options.json_keys))}",
            "Correct the line, or collect such lines in a file with --skip-bad-lines FILE.",
        ) from bad
    return reused


def _total(job: ShardJob, ranges: list[InputRange]) -> Counts:
    total = Counts(tokens=dict.fromkeys(job.keys, 0), sequences=dict.fromkeys(job.keys, 0))
    for source in ranges:
        total.add(read_counts(job, source))
    return total


def _check_outcome(options: ConvertOptions, files: list[InputFile], counts: Counts) -> None:
    for file in files:
        status = file.path.stat()
        if (status.st_size, status.st_mtime_ns) != (file.size, file.modified_ns):
            raise UserError(
                file.path,
                "a file that changed while it was converted",
                "inputs that rest",
                "Convert again when nothing writes to it.",
            )
    for key, tokens in counts.tokens.items():
        if not tokens:
            raise UserError(
                " ".join(options.inputs),
                f"no token at {key!r} in {counts.documents} documents "
                f"({counts.blank} blank lines, {sum(counts.bad.values())} bad lines)",
                "some text: Megatron cannot open an empty dataset",
                "Check the inputs and --json-keys.",
            )


def _merge(
    options: ConvertOptions,
    job: ShardJob,
    ranges: list[InputRange],
    counts: Counts,
    manifest: dict[str, Any],
) -> None:
    with merging(job.directory) as outputs:
        for number, key in enumerate(job.keys):
            with (outputs / f"{number}.bin").open("wb") as stream:
                merge_tokens(stream, job, ranges, key)
            with (outputs / f"{number}.idx").open("wb") as stream:
                merge_index(stream, job, ranges, key, counts)
        if options.skip_bad_lines is not None:
            with (outputs / BAD_LINES).open("wb") as stream:
                merge_bad_lines(stream, job, ranges)
        write_json(outputs / MANIFEST, manifest)


def _manifest(summary: ConvertSummary) -> dict[str, Any]:
    return {
        **asdict(summary),
        "datasets": {key: str(prefix) for key, prefix in summary.datasets.items()},
        "manifest": str(summary.manifest),
        "megabytes_per_second": round(summary.bytes_read / 1e6 / max(summary.seconds, 1e-3), 3),
    }
