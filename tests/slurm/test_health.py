"""Nodes are judged before training: by what their ranks say, and by how fast they exchange."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_soaes.accelerator.groups import Rendezvous
from megatron_soaes.accelerator.health import BAD_NODES, Floors, Sign, faults_of
from megatron_soaes.accelerator.health import examine as examine_nodes
from megatron_soaes.accelerator.launch import free_port
from megatron_soaes.errors import ExitCode

HOMES = ["a", "a", "b", "b"]
SOUND = Sign(gpus=2, disk_gb=100.0, clock=1000.0)
FLOORS = Floors(gpus=2, disk_gb=50.0, clock_s=5.0, allreduce_gbs=0.0)


@pytest.mark.parametrize(
    ("sign", "why"),
    [
        (None, "a rank did not come"),
        (Sign(1, 100.0, 1000.0), "1 of 2 GPUs"),
        (Sign(2, 10.0, 1000.0), "10.0 GB free, not 50"),
        (Sign(2, 100.0, 1009.0), "its clock is +9.0 s off"),
    ],
)
def test_what_makes_a_node_unsound(sign: Sign | None, why: str) -> None:
    assert faults_of([SOUND, SOUND, SOUND, sign], HOMES, FLOORS) == {"b": why}


def test_sound_nodes_have_no_faults() -> None:
    assert faults_of([SOUND] * 4, HOMES, FLOORS) == {}


def examine(folder: Path, floors: dict[str, str], ranks: int = 2) -> tuple[list[int], str]:
    """Two ranks as srun starts them, each on a node of its own; their codes, and what they say."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "megatron_soaes.accelerator.health",
             "--folder", str(folder), "--nodes", "first,second"],
            env={"SLURM_PROCID": str(rank), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
                 **floors},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    said = [process.communicate()[0] for process in processes]
    return [process.returncode for process in processes], "".join(said)


def test_a_full_disk_is_found_and_the_nodes_are_remembered(tmp_path: Path) -> None:
    codes, said = examine(tmp_path, {"SOAES_DISK_FLOOR_GB": "1e9"})
    assert codes == [ExitCode.UNSOUND] * 2, said
    listed = (tmp_path / BAD_NODES).read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in listed] == ["first", "second"]


def test_a_first_node_that_gives_no_answer_is_remembered_by_the_last(tmp_path: Path) -> None:
    """Nobody listens at the address of the first rank."""
    rendezvous = [Rendezvous(rank, 3, "127.0.0.1", free_port()) for rank in (1, 2)]
    for one in rendezvous:
        assert examine_nodes(one, ["first", "second", "third"], tmp_path, FLOORS, 0.5) == (
            ExitCode.UNSOUND
        )
    listed = (tmp_path / BAD_NODES).read_text(encoding="utf-8")
    assert listed == "first\tits first rank gives no answer\n"


def test_the_bandwidth_between_nodes_is_measured_and_held_to_its_floor(tmp_path: Path) -> None:
    codes, said = examine(tmp_path, {})
    assert codes == [ExitCode.OK] * 2, said
    assert "every node is sound" in said
    codes, said = examine(tmp_path, {"SOAES_ALLREDUCE_FLOOR_GBS": "1e6"})
    assert codes == [ExitCode.UNSOUND] * 2, said
    assert "no node alone is to blame" in said
    assert (tmp_path / BAD_NODES).read_text(encoding="utf-8") == "", "none of them is left out"
