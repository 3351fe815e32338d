"""The list of measurements. To add one, write a function `Subject -> Figures` and list it here.

`python -m benchmarks.gpu.measurements NAME [--tiny]` does one in a process of its own, so that its
peak memory is its own and its failure stays its own, and prints the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from benchmarks.subject import FULL, TINY, Subject
from benchmarks.training_step import Figures, ours, transformers_peer
from megatron_soaes.accelerator.machine import Machine


@dataclass(frozen=True)
class Measurement:
    """One row of the table."""

    name: str
    function: Callable[[Subject], Figures]
    fp8: str | None = None
    """The FP8 recipe it needs; where the machine has none, the row says so."""

    def missing(self, machine: Machine) -> str | None:
        """Why this machine cannot do it, None when it can."""
        if self.fp8 is None:
            return None
        if self.fp8 not in machine.fp8_recipes:
            return f"no {self.fp8} FP8 on this machine"
        if "transformer-engine" not in machine.versions:
            return "transformer-engine is not installed"
        return None


MEASUREMENTS = (
    Measurement("bf16", ours),
    Measurement("FP8 delayed", partial(ours, fp8="delayed"), "delayed"),
    Measurement("FP8 tensorwise", partial(ours, fp8="tensorwise"), "tensorwise"),
    Measurement("FP8 blockwise", partial(ours, fp8="blockwise"), "blockwise"),
    Measurement("transformers, SDPA, all bf16", transformers_peer),
)


def main() -> None:
    """Do the named measurement."""
    parser = argparse.ArgumentParser(description="Do one measurement and print it as JSON.")
    parser.add_argument("name", choices=[measurement.name for measurement in MEASUREMENTS])
    parser.add_argument("--tiny", action="store_true", help="a tiny model: checks the code only")
    arguments = parser.parse_args()
    (chosen,) = (m for m in MEASUREMENTS if m.name == arguments.name)
    print(json.dumps(asdict(chosen.function(TINY if arguments.tiny else FULL))))


if __name__ == "__main__":
    main()
