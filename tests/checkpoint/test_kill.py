"""A run that dies again and again, at every edge of a save, is the run that never died."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_soaes.training.records import METRICS_FILE, read_records
from tests.checkpoint.lives import EVERY, LAYOUTS, POINTS, STEPS
from tests.checkpoint.tensors import newest_tensors

pytestmark = pytest.mark.timeout(900)
"""The first test waits for all the runs."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs lie and lives.json says what was found after each death."""
    folder = tmp_path_factory.mktemp("lives")
    command = [sys.executable, "-W", "ignore", "-m", "tests.checkpoint.lives", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder


def lives(folder: Path, layout: str) -> list[dict[str, Any]]:
    """What was found after each death, the end last."""
    return list(json.loads((folder / "lives.json").read_text(encoding="utf-8"))[layout])


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_records(out / METRICS_FILE) if "loss" in record]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_state_are_those_of_the_uninterrupted_run(folder: Path, layout: str) -> None:
    seed = json.loads((folder / "lives.json").read_text(encoding="utf-8"))["seed"]
    straight, killed = folder / layout / "straight", folder / layout / "killed"
    assert len(losses(straight)) == STEPS
    assert losses(killed) == losses(straight), f"seed {seed}"
    expected = newest_tensors(straight / "checkpoints")
    for key, tensor in newest_tensors(killed / "checkpoints").items():
        assert torch.equal(tensor, expected.pop(key)), key
    assert not expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_named_point_was_deadly(folder: Path, layout: str) -> None:
    named = lives(folder, layout)[: len(POINTS)]
    assert [life["point"] for life in named] == list(POINTS)
    for life in named:
        assert life["codes"] == [-9] * LAYOUTS[layout].processes, life
    assert lives(folder, layout)[-1]["codes"] == [0] * LAYOUTS[layout].processes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_looks_complete_is_complete_after_each_death(folder: Path, layout: str) -> None:
    for life in lives(folder, layout):
        assert life["damages"] == [], life
        assert life["pointer"] in life["complete"], life


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_life_goes_on_from_the_save_before_the_one_it_died_in(folder: Path, layout: str) -> None:
    found = {life["point"]: life for life in lives(folder, layout)}
    first, second = found["before a shard write"], found["in a shard write"]
    assert (first["pointer"], second["pointer"]) == (EVERY, 2 * EVERY)
    published = found["before the pointer moves"]
    assert published["complete"][-1] == published["pointer"] + EVERY
    assert found["while old ones are deleted"]["unfinished"] == ["trash"]
    for point in ("before a shard write", "in a shard write", "before the rename"):
        assert "tmp" in found[point]["unfinished"], point


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_orphaned_writer_spoils_nothing(folder: Path, layout: str) -> None:
    assert (folder / layout / "an_orphan_wrote").exists(), "after the same step was saved anew"
    assert lives(folder, layout)[1]["damages"] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_life_leaves_nothing_unfinished(folder: Path, layout: str) -> None:
    assert lives(folder, layout)[-1]["unfinished"] == []
    assert lives(folder, layout)[-1]["pointer"] == STEPS
