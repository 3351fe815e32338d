"""The list of measurements: each subject in each arithmetic, and the peer.

`python -m benchmarks.gpu.measurements NUMBER [--tiny] [--smaller]` does one in a process of its
own, so that its peak memory is its own and its failure stays its own, and prints the figures as
JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from benchmarks.subject import SEVEN_B, SEVEN_B_LONG, SMALL, SMALL_LONG, TINY, Subject
from benchmarks.training_step import Figures, ours, transformers_peer
from megatron_soaes.accelerator.machine import Machine


@dataclass(frozen=True)
class Step:
    """One way of training."""

    name: str
    function: Callable[[Subject], Figures]
    fp8: str | None = None
    """The FP8 recipe it needs; where the machine has none, the row says so."""
    ours: bool = True
    engine: bool = False
    """Whether it needs Transformer Engine whatever the subject."""


@dataclass(frozen=True)
class Measurement:
    """One row of a subject's table."""

    subject: Subject
    step: Step

    def missing(self, machine: Machine) -> str | None:
        """Why this machine cannot do it, None when it can."""
        engine = "transformer-engine" in machine.versions
        if self.step.fp8 is not None and self.step.fp8 not in machine.fp8_recipes:
            return f"no {self.step.fp8} FP8 on this machine"
        needed = self.step.engine or (self.step.ours and self.subject.precision_aware)
        if (self.step.fp8 or needed) and not engine:
            return "transformer-engine is not installed"
        return None


BF16 = Step("bf16", ours)
FUSED = Step("bf16, fused kernels", partial(ours, fused=True), engine=True)
DELAYED, TENSORWISE, BLOCKWISE = (
    Step(f"FP8 {recipe}", partial(ours, fp8=recipe), recipe)
    for recipe in ("delayed", "tensorwise", "blockwise")
)
FUSED_FP8 = Step(
    "FP8 tensorwise, fused kernels", partial(ours, fp8="tensorwise", fused=True), "tensorwise"
)
PEER = Step("transformers, SDPA, compiled, all bf16", transformers_peer, ours=False)
EVERY_RECIPE = (BF16, TENSORWISE, PEER, FUSED, FUSED_FP8, DELAYED, BLOCKWISE)
LONG = (FUSED, FUSED_FP8, PEER)
"""At twice the length the 7B model fits with fused kernels alone, which keep fewer activations."""

MEASUREMENTS = tuple(
    Measurement(subject, step)
    for subject, steps in (
        (SEVEN_B, EVERY_RECIPE),
        (SMALL, EVERY_RECIPE),
        (SEVEN_B_LONG, LONG),
        (SMALL_LONG, LONG),
    )
    for step in steps
)
"""The most important first: time may run out."""


def main() -> None:
    """Do the numbered measurement."""
    parser = argparse.ArgumentParser(description="Do one measurement and print it as JSON.")
    parser.add_argument("number", type=int, choices=range(len(MEASUREMENTS)))
    parser.add_argument("--tiny", action="store_true", help="a tiny model: checks the code only")
    parser.add_argument("--smaller", action="store_true", help="the subject with fewer layers")
    arguments = parser.parse_args()
    chosen = MEASUREMENTS[arguments.number]
    subject = chosen.subject.smaller() if arguments.smaller else chosen.subject
    print(json.dumps(asdict(chosen.step.function(TINY if arguments.tiny else subject))))


if __name__ == "__main__":
    main()
