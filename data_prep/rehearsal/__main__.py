"""`python -m data_prep.rehearsal OUT [--seed N] [sizes]`: make the rehearsal corpus."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from data_prep.rehearsal.make import Options, Summary, make
from megatron_soaes.errors import ExitCode, UserError


def parser() -> argparse.ArgumentParser:
    """One option for the seed and one for each field of `Options`."""
    result = argparse.ArgumentParser(
        prog="python -m data_prep.rehearsal",
        description="Make the corpus, the tokenizer and the untrained model of the rehearsal.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    result.add_argument("out", type=Path, metavar="OUT", help="directory to make")
    result.add_argument("--seed", type=int, default=0, help="another seed, another world")
    for option in fields(Options):
        result.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=type(option.default),
            default=option.default,
            help=option.metadata["help"],
        )
    return result


def table(summary: Summary) -> str:
    """The parts with their sizes, as aligned text."""
    lines = [f"{'part':<22}{'records':>9}{'MB':>8}{'tokens':>11}{'bytes/token':>13}"]
    lines += [
        f"{name:<22}{part.records:>9,}{part.bytes / 1e6:>8.2f}{part.tokens:>11,}"
        f"{part.bytes_per_token:>13.2f}"
        for name, part in summary.parts.items()
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the corpus and print its sizes; bad input is told on stderr and returns 2."""
    values = vars(parser().parse_args(arguments))
    out, seed = values.pop("out"), values.pop("seed")
    try:
        summary = make(out, seed, Options(**values))
    except UserError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
    print(table(summary))
    print(f"The corpus is in {out}; its counts and hashes are in {out / 'summary.json'}.")
    return ExitCode.OK


if __name__ == "__main__":
    raise SystemExit(main())
