"""Run the GPU checks, measure training steps and add a dated section to the results.

    python -m benchmarks.gpu.run_all [--tiny] [--results benchmarks/RESULTS.md]

Ends within 8 minutes: what is not done by then is reported as failed. The section is written anew
after each measurement, so that a run which is broken off leaves what it found. Exit code 0 when
every check passed and every measurement that this machine can do was done, else 1; the section says
what failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu.ceiling import datasheet_tflops, measured_tflops
from benchmarks.gpu.measurements import MEASUREMENTS
from benchmarks.gpu.pair import PairFigures
from benchmarks.gpu.results import Report, Row, section, writer
from benchmarks.subject import TINY, Subject
from benchmarks.training_step import Figures
from megatron_soaes.accelerator.machine import Machine, read_machine

ROOT = Path(__file__).parents[2]
TIME_LIMIT_S = 460.0
"""Of everything together; the rest of the 8 minutes is for the matrix product and the report."""
CHECKS_LIMIT_S = 240.0
"""Of the checks: one that hangs leaves time for the measurements."""
FAILED = "failed: "
OUT_OF_MEMORY = "out of memory"
"""In the error of a process that found no memory on the GPU."""


def main(arguments: list[str] | None = None) -> int:
    """Do everything; returns the exit code."""
    options = _options(arguments)
    machine = read_machine()
    if machine.device == "cpu" and not options.tiny:
        print(
            "No CUDA device here: use --tiny, or run this on a GPU node (docs/guides/gpu-node.md)."
        )
        return 1
    now, write = datetime.now(UTC), writer(options.results)
    deadline = time.monotonic() + TIME_LIMIT_S
    checks_passed, checks = run_checks(min(deadline, time.monotonic() + CHECKS_LIMIT_S))
    print(f"GPU checks: {checks}", flush=True)
    command = "python -m benchmarks.gpu.run_all" + (" --tiny" if options.tiny else "")
    report = Report(machine, command, checks, datasheet_tflops(machine), rows=[])
    for number in range(len(MEASUREMENTS)):
        report.rows.append(run(number, machine, options.tiny, deadline))
        write(section(report, now))
    report = replace(report, pair=run_pair(options.tiny, deadline))
    write(section(report, now))
    # Last: from here on this process holds memory of the GPU.
    report = replace(report, measured=measured_tflops(512 if options.tiny else 8192))
    write(section(report, now))
    print(f"The figures stand at the end of {options.results}.")
    notes = [row.note for row in report.rows] + [str(report.pair)]
    failed = any(note.startswith(FAILED) for note in notes)
    return 0 if checks_passed and not failed else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the GPU checks and measure training steps.")
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model, on any machine: checks the code only"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "benchmarks/RESULTS.md",
        help="file that gets a new section (default: benchmarks/RESULTS.md)",
    )
    return parser.parse_args(arguments)


def run_checks(deadline: float) -> tuple[bool, str]:
    """Run tests/gpu; whether none failed, and pytest's closing line.

    `deadline` is a time of `time.monotonic` at which they are stopped.
    """
    done = _python(["-m", "pytest", "tests/gpu", "-vv", "--tb=short", "--durations=10"], deadline)
    if done is None:
        return False, "stopped, no time left"
    print(done.stdout, flush=True)
    lines = done.stdout.strip().splitlines()
    said = lines[-1].strip("= ") if lines else f"pytest ended with {done.returncode}"
    return done.returncode == 0, said


def run(number: int, machine: Machine, tiny: bool, deadline: float) -> Row:
    """Do one measurement in a process of its own, which is stopped at `deadline`.

    A model that does not fit is tried again with fewer layers, where the subject has that.
    """
    wanted = MEASUREMENTS[number]
    missing = wanted.missing(machine)
    name, subject = wanted.step.name, TINY if tiny else wanted.subject
    said = f"{wanted.subject.name}: {name}"
    if missing:
        print(f"{said}: not run, {missing}", flush=True)
        return Row(subject, name, None, f"not run: {missing}")
    print(f"{said} ...", flush=True)
    command = ["-m", "benchmarks.gpu.measurements", str(number), *["--tiny"] * tiny]
    row = _measured(command, subject, name, deadline)
    if OUT_OF_MEMORY in row.note and subject.fewer_layers:
        print(f"{said}: does not fit; with {subject.fewer_layers} layers ...", flush=True)
        return _measured([*command, "--smaller"], subject.smaller(), name, deadline)
    return row


def run_pair(tiny: bool, deadline: float) -> list[PairFigures] | str:
    """Measure speculative decoding in a process of its own; figures, or why there are none."""
    print("speculative decoding ...", flush=True)
    done = _python(["-m", "benchmarks.gpu.pair", *["--tiny"] * tiny], deadline)
    if done is None or done.returncode != 0:
        return FAILED + _reason(done)
    found = json.loads(done.stdout.splitlines()[-1])
    return [PairFigures(**one) for one in found]


def _measured(command: list[str], subject: Subject, name: str, deadline: float) -> Row:
    done = _python(command, deadline)
    if done is None or done.returncode != 0:
        return Row(subject, name, None, FAILED + _reason(done))
    return Row(subject, name, Figures(**json.loads(done.stdout.splitlines()[-1])))


def _reason(done: subprocess.CompletedProcess[str] | None) -> str:
    """Why a process gave no figures; its errors are shown."""
    if done is None:
        return "no time left"
    print(done.stderr, file=sys.stderr, flush=True)
    lines = done.stderr.strip().splitlines() or ["no message"]
    # Libraries may have something to say after the error.
    error = next((line for line in reversed(lines) if "Error" in line), lines[-1])
    return error.replace("|", "/")


def _python(arguments: list[str], deadline: float) -> subprocess.CompletedProcess[str] | None:
    """Run this Python from the repository's root; None when the deadline came first.

    What it had said by then is shown. Groups of one process need no network, but Gloo looks for
    one by the node's name, which may not resolve.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        return None
    try:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={"GLOO_SOCKET_IFNAME": "lo", **os.environ},
            capture_output=True,
            text=True,
            timeout=left,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        for said in (late.stdout, late.stderr):
            print((said or b"").decode(errors="replace"), file=sys.stderr, flush=True)
        return None


if __name__ == "__main__":
    sys.exit(main())
