"""The ranks of a stage as a step of a real job: how they are stopped, and which code counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_soaes.errors import ExitCode
from tests.slurm.cluster import Cluster, wait_until

ROOT = Path(__file__).parents[2]


def start(cluster: Cluster, folder: Path, *behaviours: str) -> str:
    """Submit a job whose Python launches two ranks of `stopping.py`; the job's number."""
    script = folder / "job.sh"
    script.write_text(
        f"""#!/bin/bash
cd {ROOT}
exec {sys.executable} - {folder} {" ".join(behaviours)} <<'END'
import sys
from pathlib import Path
from megatron_soaes.accelerator import srun
srun.GRACE_S = 5
logs = Path(sys.argv[1]) / "logs"
sys.exit(srun.launch_by_srun("tests.slurm.stopping", sys.argv[1:], 2, logs))
END
""",
        encoding="utf-8",
    )
    return cluster.submit(f"--output={folder}/job.log", "--ntasks=2", "--time=5", str(script))


@pytest.mark.parametrize("signal", ["TERM", "INT", "USR1"])
def test_ranks_that_are_asked_to_stop_save_first(
    cluster: Cluster, tmp_path: Path, signal: str
) -> None:
    job = start(cluster, tmp_path, "saves", "saves")
    wait_until(lambda: len(list(tmp_path.glob("begun*"))) == 2, 30)
    cluster.answer("scancel", "--batch", f"--signal={signal}", job)
    ended = cluster.wait_for(job, "FAILED")
    assert ended["ExitCode"] == f"{ExitCode.STOPPED}:0", cluster.log(ended)
    assert len(list(tmp_path.glob("saved*"))) == 2


def test_what_one_rank_refuses_is_not_taken_for_the_death_of_those_that_wait_for_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    job = start(cluster, tmp_path, "hangs", "refuses")
    ended = cluster.wait_for(job, "FAILED")
    assert "task 0: Killed" in cluster.log(ended), "by srun, as it waits in vain"
    assert ended["ExitCode"] == f"{ExitCode.BAD_INPUT}:0"


def test_a_rank_that_is_killed_counts_more_than_the_errors_of_those_that_miss_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    job = start(cluster, tmp_path, "fails", "dies")
    ended = cluster.wait_for(job, "FAILED")
    assert ended["ExitCode"] == "137:0", cluster.log(ended)
