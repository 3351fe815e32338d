"""What the command lines of the conversions have in common: options, stops and exit codes."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, get_args

from data_prep.encoders import BackendChoice
from megatron_soaes.errors import ExitCode, UserError

SummaryT = TypeVar("SummaryT")


def add_input_argument(group: argparse._ArgumentGroup) -> None:
    """Add `--input`."""
    inputs = "paths or globs of .jsonl, .jsonl.gz, .jsonl.zst and .parquet files"
    group.add_argument("--input", nargs="+", required=True, metavar="PATH", help=inputs)


def add_backend_argument(group: argparse._ArgumentGroup) -> None:
    """Add `--backend`."""
    backend = "tokenizer library; auto is fastokens where it agrees with tokenizers (auto)"
    group.add_argument("--backend", choices=get_args(BackendChoice), default="auto", help=backend)


def add_run_arguments(
    group: argparse._ArgumentGroup, outputs: str, range_bytes: int, unit: str
) -> None:
    """Add the flags of the run; `outputs` names its files, `unit` what a line of input holds."""
    add = group.add_argument
    add("--output-prefix", type=Path, required=True, metavar="PREFIX", help=f"writes {outputs}")
    replace = "replace existing outputs, and start afresh where another command was stopped"
    add("--overwrite", action="store_true", help=replace)
    add("--workers", type=int, default=1, help="worker processes (1)")
    size = f"{range_bytes // 2**20} MiB"
    cut = f"byte ranges to cut each plain JSONL file into (as many as keep one within {size})"
    add("--partitions", type=int, help=cut)
    add("--log-interval", type=int, default=1000, help=f"{unit} between progress lines (1000)")


def describe_left_out(blank_lines: int, bad_lines: Mapping[str, int]) -> Iterator[str]:
    """Lines about the input that is in no dataset; `bad_lines` are by reason."""
    if blank_lines:
        yield f"  {blank_lines:,} blank lines passed over"
    for reason, count in sorted(bad_lines.items()):
        yield f"  {count:,} bad lines left out: {reason}"


def run_command(convert: Callable[[], SummaryT], describe: Callable[[SummaryT], str]) -> int:
    """Convert and print the result in words; returns the exit code. SIGTERM stops as Ctrl-C does.

    A `UserError` is printed to stderr.
    """
    try:
        with stopping_on_sigterm():
            summary = convert()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        return ExitCode.STOPPED
    print(describe(summary))
    return ExitCode.OK


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM raises KeyboardInterrupt, as Ctrl-C does.

    What fails while the block then ends is part of the stop: a process group got the signal as a
    whole, and datatrove still talks to its manager process, which is gone.
    """
    came = False

    def stop(signal_number: int, frame: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
