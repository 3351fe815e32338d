"""`python -m benchmarks.curriculum`: run or finish the study and print its tables."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.curriculum.claims import read_values
from benchmarks.curriculum.recipes import Places
from benchmarks.curriculum.settings import (
    BASE_BATCH,
    SEQUENCE_LENGTH,
    TINY,
    TOKENS_PER_SECOND,
    Settings,
)
from benchmarks.curriculum.study import REQUIRES, ROOT, Interrupted, run_study, with_requirements
from benchmarks.curriculum.tables import Report, section
from benchmarks.gpu.results import append
from megatron_soaes.accelerator.machine import read_machine
from megatron_soaes.errors import ExitCode, UserError

RESULTS = ROOT / "benchmarks" / "RESULTS.md"


def parser() -> argparse.ArgumentParser:
    """The options; see benchmarks/README.md."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.curriculum", description=__doc__)
    result.add_argument(
        "--workdir",
        type=Path,
        help="folder of everything (default: build/curriculum, build/curriculum-tiny with --tiny)",
    )
    result.add_argument("--seeds", type=int, default=5, help="how many, 2 or more (default: 5)")
    result.add_argument(
        "--minutes-of-base", type=int, default=45, help="training of the base (default: 45)"
    )
    result.add_argument(
        "--arms", nargs="+", choices=list(REQUIRES), default=list(REQUIRES), help="default: all"
    )
    mode = result.add_mutually_exclusive_group()
    mode.add_argument("--tiny", action="store_true", help="try every line; figures mean nothing")
    mode.add_argument("--record", action="store_true", help=f"add the section to {RESULTS.name}")
    return result


def settings_of(options: argparse.Namespace) -> Settings:
    """The sizes that the options ask for."""
    if options.tiny:
        return TINY
    tokens = options.minutes_of_base * 60 * TOKENS_PER_SECOND
    return replace(Settings(), base_steps=tokens // (BASE_BATCH * SEQUENCE_LENGTH))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns an exit code. After 75, a signal's, the same command goes on."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    if options.seeds < 2 or options.minutes_of_base < 1:
        parser().error("--seeds must be 2 or more, --minutes-of-base 1 or more")
    default = ROOT / "build" / ("curriculum-tiny" if options.tiny else "curriculum")
    places = Places((options.workdir or default).resolve())
    seeds = range(1, options.seeds + 1)
    settings = settings_of(options)
    try:
        rates = run_study(places, settings, seeds, options.arms)
        values = read_values(places, seeds, with_requirements(options.arms))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except Interrupted as stop:
        print("The study stopped; the same command goes on from here.", file=sys.stderr)
        return int(stop.args[0])
    command = shlex.join(["python", "-m", "benchmarks.curriculum", *words])
    text = section(Report(read_machine(), command, settings, rates, seeds, values))
    print(f"\n{text}")
    if options.record:
        append(RESULTS, text)
        print(f"The section stands at the end of {RESULTS}.")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
