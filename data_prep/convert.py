"""A text corpus into Megatron indexed datasets: plan, encode range by range, merge, publish.

The output depends on the inputs, the tokenizer and the options that select text, never on the
number of workers, on where ranges are cut, or on how often the run was stopped and started again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.encoders import BackendChoice, Encoder, choose_encoder
from data_prep.ranges import InputFile, InputRange, find_inputs, plan_ranges
from data_prep.readers import read_batches
from data_prep.run import (
    Log,
    check_numbers,
    check_targets,
    check_token_type,
    check_unchanged,
    describe_code,
    describe_inputs,
    first_texts,
    telling_how_to_go_on,
    write_ranges,
)
from data_prep.shards import merge_bad_lines, total_counts
from data_prep.text_shards import TextCounts, TextJob, merge_index, merge_tokens
from data_prep.tokenizer import TokenizerInfo, load_tokenizer
from data_prep.work_directory import (
    is_merged,
    merging,
    open_work_directory,
    publish,
    work_directory,
)
from megatron_soaes.errors import UserError
from megatron_soaes.files import write_json

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
    options: ConvertOptions, log: Log = lambda line: print(line, file=sys.stderr)
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
    check_targets(options, files, resuming=is_merged(directory))
    ranges = plan_ranges(files, options.json_keys, options.partitions)
    info, reference = load_tokenizer(options.tokenizer_model, options.include_special_tokens)
    _check_tokenizer(options, info)
    encoder, reason = choose_encoder(
        info, reference, options.backend, lambda: first_texts(_texts(ranges, options.json_keys))
    )
    log(f"encoder: {reason}")
    collect_bad = options.skip_bad_lines is not None
    job = TextJob(directory, info, collect_bad, options.json_keys, options.append_eod)
    fingerprint = _fingerprint(options, files, info, encoder)
    with (
        telling_how_to_go_on(job, ranges, log),
        open_work_directory(directory, fingerprint, options.overwrite),
    ):
        reused = write_ranges(options, job, ranges, encoder, log)
        counts = total_counts(job, ranges)
        _check_outcome(options, files, counts)
        summary = _summarise(
            options, ranges, counts, encoder=encoder, reason=reason, reused=reused, started=started
        )
        if not is_merged(directory):
            _merge(options, job, ranges, counts, {**_manifest(summary), "run": fingerprint})
        publish(directory, options.targets())
    return summary


def _summarise(
    options: ConvertOptions,
    ranges: list[InputRange],
    counts: TextCounts,
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
    check_numbers(options)
    keys = options.json_keys
    if not keys or len(set(keys)) < len(keys) or any("/" in key or not key for key in keys):
        raise UserError(
            "--json-keys",
            " ".join(map(repr, keys)) or "none",
            "different keys that can stand in a file name",
            "Name each key once; rename keys with a '/' in the corpus.",
        )


def _check_tokenizer(options: ConvertOptions, info: TokenizerInfo) -> None:
    if options.append_eod and info.eod_id is None:
        raise UserError(
            info.path.with_name("tokenizer_config.json"),
            "no eos_token",
            "the token that --append-eod puts after each document",
            "Add eos_token to that file, or leave --append-eod out.",
        )
    check_token_type(info)


def _texts(ranges: list[InputRange], keys: tuple[str, ...]) -> Iterator[list[str]]:
    for source in ranges:
        for batch in read_batches(source, keys):
            yield [text for column in batch.texts.values() for text in column]


def _fingerprint(
    options: ConvertOptions, files: list[InputFile], info: TokenizerInfo, encoder: Encoder
) -> dict[str, Any]:
    """Everything the bytes of a shard depend on."""
    return {
        "inputs": describe_inputs(files),
        "json_keys": options.json_keys,
        "append_eod": options.append_eod,
        "partitions": options.partitions,
        "skip_bad_lines": options.skip_bad_lines is not None,
        "tokenizer": {**asdict(info), "path": str(info.path.resolve())},
        **describe_code(encoder, ("fastokens", "tokenizers")),
    }


def _check_outcome(options: ConvertOptions, files: list[InputFile], counts: TextCounts) -> None:
    check_unchanged(files)
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
    job: TextJob,
    ranges: list[InputRange],
    counts: TextCounts,
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
