"""The job scripts on a real Slurm, with a stand-in for `soaes` that ends as it is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_soaes.accelerator.health import BAD_NODES
from megatron_soaes.errors import ExitCode
from tests.slurm.cluster import Cluster, wait_until

SLURM = Path(__file__).parents[2] / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))


def test_shellcheck_finds_nothing() -> None:
    files = [*SCRIPTS, *SLURM.glob("*.sh")]
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [checker, "--external-sources", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_slurm_takes_every_script(cluster: Cluster, script: Path) -> None:
    done = subprocess.run(
        ["sbatch", "--test-only", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", script],
        env=cluster.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A run's folder with a recipe for the jobs, which nobody reads here."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/recipe.json").write_text("{}", encoding="utf-8")
    return tmp_path


def start(
    cluster: Cluster, workdir: Path, body: str, script: str = "evaluate.sbatch", *options: str,
    **environment: str,
) -> str:  # fmt: skip
    """Submit a stage whose `soaes` is this piece of shell; the job's number."""
    stand_in = workdir / "soaes"
    stand_in.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    stand_in.chmod(0o755)
    return cluster.submit(
        f"--output={workdir}/slurm/%j.log", "--time=30", *options,
        str(SLURM / script), str(workdir / "slurm/recipe.json"), "stage", "other",
        environment={
            "SOAES_SLURM_DIR": str(SLURM), "SOAES_ENVIRONMENT": str(SLURM / "environment.sh"),
            "SOAES": str(stand_in), "SOAES_ENV": sys.prefix, "SOAES_DISK_FLOOR_GB": "0",
            **environment,
        },
    )  # fmt: skip


def test_a_job_is_one_stage_of_the_recipe(cluster: Cluster, workdir: Path) -> None:
    job = start(cluster, workdir, 'echo "called: $*; $MASTER_ADDR"')
    log = cluster.log(cluster.wait_for(job, "COMPLETED"))
    recipe = workdir / "slurm/recipe.json"
    assert f"called: run {recipe} --only stage --launcher srun; 127.0.0." in log


def test_a_signal_before_the_time_limit_requeues_and_the_job_goes_on(
    cluster: Cluster, workdir: Path
) -> None:
    body = f"""
[ "$SLURM_RESTART_COUNT" = 1 ] && exit 0
trap 'sleep 1; touch {workdir}/saved; exit {ExitCode.STOPPED}' USR1
touch {workdir}/begun
while true; do sleep 0.1; done"""
    job = start(cluster, workdir, body)
    wait_until((workdir / "begun").exists, 30)
    cluster.answer("scancel", "--batch", "--signal=USR1", job)
    ended = cluster.wait_for(job, "COMPLETED")
    assert (workdir / "saved").exists()
    assert ended["Restarts"] == "1"


def test_a_signal_that_comes_before_the_stage_is_not_lost(cluster: Cluster, workdir: Path) -> None:
    environment = workdir / "environment.sh"
    slow = f'touch {workdir}/loading; [ -n "${{SLURM_RESTART_COUNT:-}}" ] || sleep 3'
    environment.write_text(f'source "{SLURM}/environment.sh"\n{slow}\n', encoding="utf-8")
    body = '[ "$SLURM_RESTART_COUNT" = 1 ] && exit 0; sleep 60'
    job = start(cluster, workdir, body, SOAES_ENVIRONMENT=str(environment))
    wait_until((workdir / "loading").exists, 30)
    cluster.answer("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait_for(job, "COMPLETED")["Restarts"] == "1"


def test_a_recipe_on_one_node_goes_on_after_its_limit_and_not_after_it_was_cancelled(
    cluster: Cluster, workdir: Path
) -> None:
    body = f"""
trap 'sleep 1; exit {ExitCode.STOPPED}' TERM USR1
echo "called: $*" | tee {workdir}/begun$SLURM_RESTART_COUNT
while true; do sleep 0.1; done"""
    job = start(cluster, workdir, body, "one_node.sbatch")
    wait_until((workdir / "begun").exists, 30)
    cluster.answer("scancel", "--batch", "--signal=USR1", job)
    wait_until((workdir / "begun1").exists, 60)
    recipe = workdir / "slurm/recipe.json"
    assert (workdir / "begun1").read_text("utf-8") == f"called: run {recipe} stage other\n"
    cluster.answer("scancel", job)
    log = cluster.log(cluster.wait_for(job, "CANCELLED"))
    wait_until(lambda: not cluster.answer("squeue", "--noheader", "--jobs", job).strip(), 30)
    assert cluster.job(job)["JobState"] == "CANCELLED", log


def test_an_element_of_an_array_goes_back_alone(cluster: Cluster, workdir: Path) -> None:
    """The last one, whose job has the number of the whole array."""
    (workdir / "slurm" / BAD_NODES).write_text("127.0.0.4\tslow\n", encoding="utf-8")
    body = f"""
[ "$SLURM_RESTART_COUNT$SLURM_ARRAY_TASK_ID" = 1 ] && exit {ExitCode.STOPPED}
sleep 3"""
    job = start(cluster, workdir, body, "preprocess.sbatch", "--array=0-1")
    elements = [cluster.wait_for(f"{job}_{number}", "COMPLETED") for number in range(2)]
    assert [one["Restarts"] for one in elements] == ["0", "1"]
    assert [one.get("ExcNodeList") for one in elements] == ["(null)", "127.0.0.4"]


def test_a_controller_that_gives_no_answer_is_asked_again(cluster: Cluster, workdir: Path) -> None:
    """Stand-ins for Slurm's commands that fail once, as those of a busy controller do."""
    environment = workdir / "environment.sh"
    busy = "".join(
        f'{name}() {{ mkdir {workdir}/{name} 2>/dev/null && return 1; command {name} "$@"; }}\n'
        for name in ("squeue", "scontrol")
    )
    environment.write_text(f'source "{SLURM}/environment.sh"\n{busy}', encoding="utf-8")
    body = f'[ "$SLURM_RESTART_COUNT" = 1 ] && exit 0; rmdir {workdir}/scontrol; exit 75'
    job = start(cluster, workdir, body, SOAES_ENVIRONMENT=str(environment))
    assert cluster.wait_for(job, "COMPLETED")["Restarts"] == "1"
    assert (workdir / "squeue").is_dir()
    assert (workdir / "scontrol").is_dir()


def test_restarts_are_bounded(cluster: Cluster, workdir: Path) -> None:
    job = start(cluster, workdir, f"exit {ExitCode.STALLED}", SOAES_MAX_RESTARTS="1")
    wait_until(lambda: cluster.job(job)["Restarts"] == "1", 60)
    ended = cluster.wait_for(job, "FAILED")
    assert ended["ExitCode"] == f"{ExitCode.STALLED}:0"
    assert "requeued 1 times already: it ends here" in cluster.log(ended)


def test_bad_input_is_not_tried_again(cluster: Cluster, workdir: Path) -> None:
    job = start(cluster, workdir, f"exit {ExitCode.BAD_INPUT}")
    ended = cluster.wait_for(job, "FAILED")
    assert (ended["ExitCode"], ended["Restarts"]) == ("2:0", "0")


def test_a_cancelled_job_saves_and_does_not_come_back(cluster: Cluster, workdir: Path) -> None:
    body = f"""
trap 'touch {workdir}/saved; exit {ExitCode.STOPPED}' TERM
touch {workdir}/begun
while true; do sleep 0.1; done"""
    job = start(cluster, workdir, body)
    wait_until((workdir / "begun").exists, 30)
    cluster.answer("scancel", job)
    wait_until((workdir / "saved").exists, 30)
    wait_until(lambda: not cluster.answer("squeue", "--noheader", "--jobs", job).strip(), 30)
    assert cluster.job(job)["JobState"] == "CANCELLED"


def test_training_stays_away_from_a_node_without_its_gpus(cluster: Cluster, workdir: Path) -> None:
    """The virtual nodes promise GPUs that torch cannot find, so each of them is unsound."""
    job = start(
        cluster, workdir, "exit 0", "train.sbatch", "--gpus-per-node=fake:1", SOAES_MAX_RESTARTS="1"
    )
    wait_until(lambda: cluster.job(job)["Restarts"] == "1", 60)
    ended = cluster.wait_for(job, "FAILED")
    assert ended["ExitCode"] == f"{ExitCode.UNSOUND}:0"
    listed = (workdir / "slurm" / BAD_NODES).read_text(encoding="utf-8").splitlines()
    first, second = (line.split("\t")[0] for line in listed)
    assert first != second
    assert ended["ExcNodeList"] == first
    assert listed[0].endswith("\t0 of 1 GPUs")
