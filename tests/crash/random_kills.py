"""Twenty kills at random moments (`make test-crash`); minutes, so outside the quick suite.

`SOAES_CRASH_SEED` repeats the moments of a run; the seed of each run is printed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.crash.graph import copy_graph, differences, start

KILLS = 20
pytestmark = pytest.mark.timeout(3600)


def test_results_are_those_of_the_unkilled_run(uninterrupted: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("SOAES_CRASH_SEED", time.time_ns() % 10**9))
    print(f"seed {seed}: SOAES_CRASH_SEED={seed} repeats these moments")
    moments = random.Random(seed)
    left, graphs = KILLS, 0
    while left:
        root = tmp_path / f"graph{graphs}"
        recipe = copy_graph(uninterrupted, root)
        graphs += 1
        while left and _killed(recipe, moments.uniform(0, 20)):
            left -= 1
        process = start(recipe)
        output, _ = process.communicate()
        assert process.returncode == 0, f"seed {seed}: {output}"
        assert list(differences(root, uninterrupted)) == [], f"seed {seed}"
        print(f"graph {graphs} finished, {left} kills to go")


def _killed(recipe: Path, after_s: float) -> bool:
    """Run for so many seconds, then kill; False when the run had ended by itself."""
    process = start(recipe)
    try:
        output, _ = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        print(f"killed after {after_s:.1f} s", flush=True)
        return True
    assert process.returncode == 0, output
    return False
