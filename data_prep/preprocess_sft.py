"""Convert conversations to an SFT dataset: token ids and loss weights, by the chat template.

python -m data_prep.preprocess_sft --input 'chats/*.jsonl' --tokenizer-model models/qwen \\
    --output-prefix data/chats --max-length 4096 --too-long drop --workers 8

docs/guides/bring-your-corpus.md says which records are taken and what is trained.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import get_args

if not __package__:
    # Run as a file: make the repository importable, in place of this directory.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_prep.command import (
    add_backend_argument,
    add_input_argument,
    add_run_arguments,
    describe_left_out,
    run_command,
)
from data_prep.sft.convert import RANGE_BYTES, SFTOptions, SFTSummary, convert_sft
from data_prep.sft.records import FormatChoice, TrainOn
from data_prep.sft.shards import TooLong

PROGRAM = "preprocess_sft.py"


def build_parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    """The command line, under the name of `program`."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__.split("\n")[0], allow_abbrev=False
    )
    _add_record_arguments(parser.add_argument_group("records"))
    _add_training_arguments(parser.add_argument_group("text, tokens and loss weights"))
    run = parser.add_argument_group("outputs and the run")
    outputs = "PREFIX.bin/.idx, PREFIX_weights.bin/.idx, PREFIX_sources.npy and PREFIX.json"
    add_run_arguments(run, outputs, RANGE_BYTES, "records")
    return parser


def _add_record_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add_input_argument(group)
    kind = "form of the records; auto tells each by its keys (auto)"
    add("--format", choices=get_args(FormatChoice), default="auto", help=kind)
    add("--system", metavar="TEXT", help="system prompt of all conversations, in place of theirs")
    weight = "key of a record's loss weight, a number above 0 (every record weighs 1)"
    add("--weight-key", metavar="KEY", help=weight)
    source = group.add_mutually_exclusive_group().add_argument
    source("--source-key", metavar="KEY", help="key of the name of a record's source")
    source("--source", metavar="NAME", help="source of all records (the name of the prefix)")
    bad = "collect refused records in FILE and go on, instead of stopping"
    add("--skip-bad-lines", type=Path, metavar="FILE", help=bad)


def _add_training_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    model = "a Hugging Face model directory with its chat template"
    add("--tokenizer-model", type=Path, required=True, metavar="DIR", help=model)
    train = "all assistant turns, or only the last message (all)"
    add("--train-on", choices=get_args(TrainOn), default="all", help=train)
    add("--max-length", type=int, metavar="N", help="most tokens of a conversation (no limit)")
    policy = "stop, cut the end, or leave the conversation out (refuse)"
    add("--too-long", choices=get_args(TooLong), default="refuse", help=policy)
    day = "the date that a template writes which asks for today's"
    add("--date", type=date.fromisoformat, metavar="YYYY-MM-DD", help=day)
    add_backend_argument(group)


def parse_options(argv: list[str], program: str = PROGRAM) -> SFTOptions:
    """Read the command line."""
    arguments = vars(build_parser(program).parse_args(argv))
    return SFTOptions(inputs=tuple(arguments.pop("input")), **arguments)


def describe(summary: SFTSummary) -> str:
    """The result in words."""
    report = summary.report
    quantiles = ", ".join(
        f"{share} {tokens:,}" for share, tokens in report.length_quantiles.items()
    )
    lines = [
        f"{report.conversations:,} conversations in {summary.seconds:.1f} s "
        f"({summary.bytes_read / 1e6:,.1f} MB, {summary.backend})",
        f"  {summary.prefix}.bin/.idx: {report.tokens:,} tokens",
        f"  {summary.prefix}_weights.bin/.idx: {report.trained_tokens:,} tokens trained "
        f"({report.trained_share:.1%}), in {report.trained_turns:,} of {report.turns:,} answers, "
        f"each up to {report.end_of_turn}",
        f"  tokens of a conversation: {quantiles}",
    ]
    for name, source in report.sources.items():
        lines.append(
            f"  source {name}: {source.conversations:,} conversations, {source.tokens:,} tokens, "
            f"{source.trained_tokens:,} trained"
        )
    if report.truncated:
        lines.append(f"  {report.truncated:,} conversations cut to the longest length")
    for reason, count in sorted(report.dropped.items()):
        lines.append(f"  {count:,} conversations left out: {reason}")
    lines += describe_left_out(report.blank_lines, report.bad_lines)
    lines.append(f"  {summary.description}")
    return "\n".join(lines)


def main(argv: list[str], program: str = PROGRAM) -> int:
    """Run the command line `argv`, which the user knows as `program`; returns the exit code."""
    return run_command(lambda: convert_sft(parse_options(argv, program)), describe)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
