"""Conversation files into an SFT dataset: plan, encode range by range, merge, publish.

The dataset depends on the inputs, the tokenizer, its chat template and the options that say what is
trained, never on the number of workers or on how often the run was stopped and started again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_prep.datasets.checksums import described, piece_of
from data_prep.documents import BadDocumentError
from data_prep.encoders import BackendChoice
from data_prep.options import DESCRIPTION, RunOptions, check_numbers
from data_prep.ranges import InputRange
from data_prep.run import (
    TOKENIZER_PACKAGES,
    Log,
    RunSummary,
    check_token_type,
    plan_run,
    start_run,
)
from data_prep.sft.chat_template import load_chat_template, load_control_tokens
from data_prep.sft.merge import merge_pairs, read_lengths, read_sources
from data_prep.sft.problems import RULES, RecordError
from data_prep.sft.reader import NumberedRecord, read_records
from data_prep.sft.records import FormatChoice, RecordReader, TrainOn
from data_prep.sft.report import SFTReport, make_report
from data_prep.sft.shards import SFTCounts, SFTJob, TooLong
from data_prep.sft.turns import Chat
from data_prep.tokenizer import TokenizerInfo, load_tokenizer
from megatron_soaes.errors import UserError
from megatron_soaes.files import write_json

FORMAT = "soaes-sft"
VERSION = 1
SOURCES = "sources.npy"
SUFFIXES = {
    "tokens.bin": ".bin",
    "tokens.idx": ".idx",
    "weights.bin": "_weights.bin",
    "weights.idx": "_weights.idx",
    SOURCES: "_sources.npy",
}
"""What stands behind the prefix in the name of a file, by its name in the work directory."""
RANGE_BYTES = 4 * 2**20
"""Smaller than those of text: a record takes longer, and a dataset is seldom large."""


@dataclass(frozen=True)
class SFTOptions(RunOptions):
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

    def dataset_files(self) -> dict[str, Path]:
        return {name: Path(f"{self.output_prefix}{suffix}") for name, suffix in SUFFIXES.items()}

    @property
    def description(self) -> Path:
        return Path(f"{self.output_prefix}.json")

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
            "skip_bad_lines": self.collect_bad,
        }


@dataclass(frozen=True)
class SFTSummary(RunSummary):
    """What a run read and wrote."""

    prefix: Path
    """Of the dataset."""
    description: Path
    """The JSON file whose presence says that the dataset is whole."""
    report: SFTReport


def convert_sft(
    options: SFTOptions, log: Log = lambda line: print(line, file=sys.stderr)
) -> SFTSummary:
    """Convert conversations; the outputs appear whole, the description last.

    Raises `UserError` for bad options, a chat template that cannot be trained on, and bad input,
    with no output and no work directory left behind. On KeyboardInterrupt, or when the process is
    killed, the finished ranges stay in the work directory beside the outputs and the same options
    go on from there.
    """
    _check_options(options)
    plan = plan_run(options, range_bytes=RANGE_BYTES)
    job, reference, end_of_turn = load_job(options, plan.directory)
    run = start_run(plan, job, reference, _texts(job, plan.ranges), log)
    fingerprint = run.fingerprint(_settings(options, job.chat), (*TOKENIZER_PACKAGES, "jinja2"))
    with run.converting(fingerprint) as (counts, reused):
        _check_outcome(options, counts)
        source_names, source_numbers = read_sources(job, plan.ranges)
        lengths = read_lengths(job, plan.ranges)
        report = make_report(counts, lengths, source_names, end_of_turn)

        def write(outputs: Path) -> None:
            merge_pairs(outputs, job, plan.ranges, report.conversations)
            with (outputs / SOURCES).open("wb") as stream:
                np.save(stream, source_numbers)
            description = _description(options, job, source_names, report)
            write_json(outputs / DESCRIPTION, description | {"files": _checksums(outputs)})

        run.merge(write)
    return SFTSummary(
        **asdict(run.summary(reused)),
        prefix=options.output_prefix,
        description=options.description,
        report=report,
    )


def load_job(options: SFTOptions, directory: Path) -> tuple[SFTJob, Tokenizer, str]:
    """How records become tokens, the tokenizer of it, and the token that ends an answer.

    Shards are written below `directory`. Raises `UserError` for a chat template that cannot be
    trained on.
    """
    info, reference, chat = _load_chat(options)
    return _job(options, directory, info, chat), reference, _end_of_turn(chat)


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
        collect_bad=options.collect_bad,
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


def _settings(options: SFTOptions, chat: Chat) -> dict[str, Any]:
    """What the bytes of a shard depend on beside the inputs and the tokenizer."""
    return {
        **options.described(),
        "template": chat.template.sha256,
        "named_tokens": chat.template.named_tokens,
        "control_tokens": chat.control.ids,
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


def _description(
    options: SFTOptions, job: SFTJob, source_names: list[str], report: SFTReport
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "sources": source_names,
        "conversations": report.conversations,
        "tokens": report.tokens,
        "trained_tokens": report.trained_tokens,
        "longest": report.longest,
        "tokenizer_path": str(job.tokenizer.path.resolve()),
        "tokenizer_sha256": job.tokenizer.sha256,
        "template_sha256": job.chat.template.sha256,
        "options": options.described(),
        "report": asdict(report),
    }


def _checksums(outputs: Path) -> dict[str, dict[str, Any]]:
    """Of tokens and weights, by suffix; in one piece, so that it does not show where ranges end."""
    return {
        suffix: described([piece_of(outputs / name)])
        for name, suffix in SUFFIXES.items()
        if name != SOURCES
    }
