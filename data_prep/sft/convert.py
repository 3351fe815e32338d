"""Conversation files into an SFT dataset: plan, encode range by range, merge, publish.

The dataset depends on the inputs, the tokenizer, its chat template and the options that say what is
trained, never on the number of workers or on how often the run was stopped and started again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_prep.documents import BadDocumentError
from data_prep.encoders import BackendChoice, Encoder, choose_encoder
from data_prep.ranges import InputFile, InputRange, find_inputs, plan_ranges
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
from data_prep.sft.chat_template import load_chat_template, load_control_tokens
from data_prep.sft.merge import merge_pairs, read_lengths, read_sources
from data_prep.sft.problems import RULES, RecordError
from data_prep.sft.reader import NumberedRecord, read_records
from data_prep.sft.records import FormatChoice, RecordReader, TrainOn
from data_prep.sft.report import SFTReport, make_report
from data_prep.sft.shards import SFTCounts, SFTJob, TooLong
from data_prep.sft.turns import Chat
from data_prep.shards import merge_bad_lines, total_counts
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

FORMAT = "soaes-sft"
VERSION = 1
BAD_LINES = "bad-lines.jsonl"
SOURCES = "sources.npy"
DESCRIPTION = "description.json"
RANGE_BYTES = 4 * 2**20
"""Smaller than those of text: a record takes longer, and a dataset is seldom large."""


@dataclass(frozen=True)
class SFTOptions:
    """What to convert; the command-line flags of `preprocess_sft.py` under the same names."""

    inputs: tuple[str, ...]
    output_prefix: Path
    tokenizer_model: Path
    format: FormatChoice = "auto"
    train_on: TrainOn = "all"
    system: str | None = None
    weight_key: str | None = None
    source_key: str | None = None
    source: str | None = None
    """None: the name of the output prefix."""
    max_length: int | None = None
    too_long: TooLong = "refuse"
    date: date | None = None
    workers: int = 1
    partitions: int | None = None
    log_interval: int = 1000
    backend: BackendChoice = "auto"
    skip_bad_lines: Path | None = None
    overwrite: bool = False

    def targets(self) -> dict[str, Path]:
        """The outputs in the order in which they appear, by their names in the work directory."""
        targets = {
            name: Path(f"{self.output_prefix}{suffix}")
            for name, suffix in (
                ("tokens.bin", ".bin"),
                ("tokens.idx", ".idx"),
                ("weights.bin", "_weights.bin"),
                ("weights.idx", "_weights.idx"),
                (SOURCES, "_sources.npy"),
            )
        }
        if self.skip_bad_lines is not None:
            targets[BAD_LINES] = self.skip_bad_lines
        targets[DESCRIPTION] = Path(f"{self.output_prefix}.json")
        return targets

    def described(self) -> dict[str, Any]:
        """The options on which the dataset depends, as JSON."""
        return {
            "inputs": list(self.inputs),
            "format": self.format,
            "train_on": self.train_on,
            "system": self.system,
            "weight_key": self.weight_key,
            "source_key": self.source_key,
            "source": self.source,
            "max_length": self.max_length,
            "too_long": self.too_long,
            "date": None if self.date is None else self.date.isoformat(),
            "skip_bad_lines": self.skip_bad_lines is not None,
        }


@dataclass(frozen=True)
class SFTSummary:
    """What a run read and wrote."""

    prefix: Path
    """Of the dataset."""
    description: Path
    """The JSON file whose presence says that the dataset is whole."""
    report: SFTReport
    backend: str
    backend_reason: str
    ranges: int
    ranges_reused: int
    """Ranges that an earlier, stopped run had finished."""
    bytes_read: int
    """Bytes on the disk of all ranges."""
    seconds: float
    """Wall time of this run; with reused ranges not of all the work."""


def convert_sft(
    options: SFTOptions, log: Log = lambda line: print(line, file=sys.stderr)
) -> SFTSummary:
    """Convert conversations; the outputs appear whole, the description last.

    Raises `UserError` for bad options, a chat template that cannot be trained on, and bad input,
    with no output and no work directory left behind. On KeyboardInterrupt, or when the process is
    killed, the finished ranges stay in the work directory beside the outputs and the same options
    go on from there.
    """
    started = time.monotonic()
    _check_options(options)
    directory = work_directory(options.output_prefix)
    files = find_inputs(options.inputs)
    check_targets(options, files, resuming=is_merged(directory))
    ranges = plan_ranges(files, None, options.partitions, RANGE_BYTES)
    info, reference, chat = _load_chat(options)
    end_of_turn = _end_of_turn(chat)
    job = _job(options, directory, info, chat)
    encoder, reason = choose_encoder(
        info, reference, options.backend, lambda: first_texts(_texts(job, ranges))
    )
    log(f"encoder: {reason}")
    fingerprint = _fingerprint(options, files, job, encoder)
    with (
        telling_how_to_go_on(job, ranges, log),
        open_work_directory(directory, fingerprint, options.overwrite),
    ):
        reused = write_ranges(options, job, ranges, encoder, log)
        counts = total_counts(job, ranges)
        check_unchanged(files)
        _check_outcome(options, counts)
        sources, _ = read_sources(job, ranges)
        report = make_report(counts, read_lengths(job, ranges), sources, end_of_turn)
        if not is_merged(directory):
            _merge(options, job, ranges, report)
        publish(directory, options.targets())
    return SFTSummary(
        prefix=options.output_prefix,
        description=options.targets()[DESCRIPTION],
        report=report,
        backend=encoder.name,
        backend_reason=reason,
        ranges=len(ranges),
        ranges_reused=reused,
        bytes_read=sum(source.size for source in ranges),
        seconds=round(time.monotonic() - started, 3),
    )


def _check_options(options: SFTOptions) -> None:
    check_numbers(options)
    if options.max_length is not None and options.max_length < 2:
        raise UserError("--max-length", str(options.max_length), "2 or more tokens", "Raise it.")
    if options.max_length is None and options.too_long != "refuse":
        raise UserError(
            f"--too-long {options.too_long}", "no --max-length", "the length it is about", "Add it."
        )
    if options.source is not None and options.source_key is not None:
        raise UserError(
            "--source", "also --source-key", "one source for all, or a key", "Leave one out."
        )
    for flag, text in (("--system", options.system), ("--source", options.source)):
        if text is not None and not text.strip():
            raise UserError(flag, repr(text), "some text", "Leave the flag out.")


def _load_chat(options: SFTOptions) -> tuple[TokenizerInfo, Tokenizer, Chat]:
    info, reference = load_tokenizer(options.tokenizer_model, add_special_tokens=False)
    check_token_type(info)
    template = load_chat_template(info, options.date)
    return info, reference, Chat(template, load_control_tokens(info, reference))


def _end_of_turn(chat: Chat) -> str:
    try:
        return chat.end_of_turn()
    except RecordError as error:
        raise UserError(chat.template.place, error.found, *RULES[error.problem]) from error


def _job(options: SFTOptions, directory: Path, info: TokenizerInfo, chat: Chat) -> SFTJob:
    reader = RecordReader(
        format=options.format,
        system=options.system,
        weight_key=options.weight_key,
        source_key=options.source_key,
        source=options.source or options.output_prefix.name,
        tool_role=chat.writes_tool_turns(),
    )
    return SFTJob(
        directory=directory,
        tokenizer=info,
        collect_bad=options.skip_bad_lines is not None,
        reader=reader,
        chat=chat,
        train_on=options.train_on,
        max_length=options.max_length,
        too_long=options.too_long,
    )


def _texts(job: SFTJob, ranges: list[InputRange]) -> Iterator[Iterator[str]]:
    for source in ranges:
        for batch in read_records(source):
            yield (text for record in batch.records for text in _texts_of(job, record))


def _texts_of(job: SFTJob, record: NumberedRecord) -> list[str]:
    try:
        return job.prepare(record).texts
    except BadDocumentError:
        return []


def _fingerprint(
    options: SFTOptions, files: list[InputFile], job: SFTJob, encoder: Encoder
) -> dict[str, Any]:
    """Everything the bytes of a shard depend on."""
    return {
        **options.described(),
        "inputs": describe_inputs(files),
        "partitions": options.partitions,
        "tokenizer": {**asdict(job.tokenizer), "path": str(job.tokenizer.path.resolve())},
        "template": job.chat.template.sha256,
        "named_tokens": job.chat.template.named_tokens,
        "control_tokens": job.chat.control.ids,
        **describe_code(encoder, ("fastokens", "tokenizers", "jinja2"), RANGE_BYTES),
    }


def _check_outcome(options: SFTOptions, counts: SFTCounts) -> None:
    """The first token of a conversation is never trained, and one that is trained always exists."""
    tokens, trained = sum(counts.tokens.values()), sum(counts.trained_tokens.values())
    if not 0 < trained < tokens:
        left_out = {**counts.bad, **counts.dropped}
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        raise UserError(
            " ".join(options.inputs),
            f"{trained} tokens to train on of {tokens} in {counts.documents} conversations "
            f"(left out: {reasons or 'nothing'}; {counts.blank} blank lines)",
            "conversations of which a part is trained",
            "Check the inputs, --format and --max-length.",
        )


def _merge(options: SFTOptions, job: SFTJob, ranges: list[InputRange], report: SFTReport) -> None:
    names, sources = read_sources(job, ranges)
    with merging(job.directory) as outputs:
        merge_pairs(outputs, job, ranges, report.conversations)
        with (outputs / SOURCES).open("wb") as stream:
            np.save(stream, sources)
        if options.skip_bad_lines is not None:
            with (outputs / BAD_LINES).open("wb") as stream:
                merge_bad_lines(stream, job, ranges)
        description = {
            "format": FORMAT,
            "version": VERSION,
            "sources": names,
            "conversations": report.conversations,
            "tokens": report.tokens,
            "trained_tokens": report.trained_tokens,
            "longest": report.longest,
            "tokenizer_sha256": job.tokenizer.sha256,
            "template_sha256": job.chat.template.sha256,
            "options": options.described(),
            "report": asdict(report),
        }
        write_json(outputs / DESCRIPTION, description)
