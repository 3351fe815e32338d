"""A checkpoint of any layout is loaded in any other; a save in the background is the same save."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_soaes.checkpoint.directory import iteration_directory, latest_iteration
from megatron_soaes.training.records import METRICS_FILE, read_records
from tests.checkpoint.layouts import EVERY, LAYOUTS, SAVED, STEPS
from tests.checkpoint.tensors import tensors_in

pytestmark = pytest.mark.timeout(900)
"""The first test waits for all the runs."""


def loss_of_the_next_step(folder: Path, saved: str) -> float:
    """What the run that saved went on to compute."""
    records = read_records(folder / "saved" / saved / METRICS_FILE)
    return float(next(r["loss"] for r in records if r["step"] == STEPS and "loss" in r))


@pytest.mark.parametrize("loaded", LAYOUTS)
@pytest.mark.parametrize("saved", SAVED)
def test_weights_and_moments_are_loaded_bitwise(layout_runs: Path, saved: str, loaded: str) -> None:
    expected = tensors_in(iteration_directory(layout_runs / "saved" / saved / "checkpoints", EVERY))
    assert sum(".exp_avg_sq." in key for key in expected) > 5
    again = layout_runs / "again" / f"{saved}-{loaded}"
    for key, tensor in tensors_in(iteration_directory(again, EVERY)).items():
        assert torch.equal(tensor, expected.pop(key)), key
    assert not expected


@pytest.mark.parametrize("loaded", LAYOUTS)
@pytest.mark.parametrize("saved", SAVED)
def test_the_next_loss_is_the_same(layout_runs: Path, saved: str, loaded: str) -> None:
    losses = json.loads((layout_runs / f"losses-{loaded}.json").read_text(encoding="utf-8"))
    difference = abs(losses[f"{saved}-{loaded}"] - loss_of_the_next_step(layout_runs, saved))
    assert difference <= (0 if saved == loaded else 1e-6)


@pytest.mark.parametrize("saved", SAVED)
def test_a_late_save_in_the_background_holds_the_step_it_was_asked_for(
    layout_runs: Path, saved: str
) -> None:
    for iteration in (EVERY, STEPS):
        straight = layout_runs / "saved" / saved / "checkpoints"
        delayed = layout_runs / "delayed" / saved / "checkpoints"
        expected = tensors_in(iteration_directory(straight, iteration))
        for key, tensor in tensors_in(iteration_directory(delayed, iteration)).items():
            assert torch.equal(tensor, expected.pop(key)), (iteration, key)
        assert not expected


@pytest.mark.parametrize("saved", SAVED)
def test_a_run_ends_when_its_last_save_is_complete(layout_runs: Path, saved: str) -> None:
    assert latest_iteration(layout_runs / "delayed" / saved / "checkpoints") == STEPS


@pytest.mark.parametrize("saved", SAVED)
def test_the_time_a_save_took_and_blocked_is_recorded(layout_runs: Path, saved: str) -> None:
    saves = [
        [r for r in read_records(layout_runs / kind / saved / METRICS_FILE) if "save_seconds" in r]
        for kind in ("saved", "delayed")
    ]
    for records in saves:
        assert [record["step"] for record in records] == [EVERY, STEPS]
        for record in records:
            assert 0 < record["save_blocked_seconds"] <= record["save_seconds"]
    _, delayed = saves
    assert delayed[0]["save_blocked_seconds"] < delayed[0]["save_seconds"]


@pytest.mark.parametrize("name", ["late for a save", "late for a load"])
def test_a_rank_that_does_not_arrive_is_named(layout_runs: Path, name: str) -> None:
    punctual, late = (
        json.loads((layout_runs / f"told-{rank}.json").read_text(encoding="utf-8"))[name]
        for rank in (0, 1)
    )
    assert punctual.startswith("MissingRanksError: ")
    assert "rank 1 did not arrive within 2 s (1 of 2 did)" in punctual
    assert "rank 0 gave up" in late


def test_an_error_of_one_rank_reaches_the_others(layout_runs: Path) -> None:
    fine, full = (
        json.loads((layout_runs / f"told-{rank}.json").read_text(encoding="utf-8"))
        for rank in (0, 1)
    )
    assert "no space left" in full["full disk"]
    assert "rank 1 failed: OSError" in fine["full disk"]
    assert latest_iteration(layout_runs / "full") is None
    assert "after all" not in fine
    assert latest_iteration(layout_runs / "after") == 1
