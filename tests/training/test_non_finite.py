"""A NaN on one rank: every rank skips the step, and too many in a row end the run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_soaes.checkpoint.trainer_state import TrainerState
from tests.training.material import BATCH, SHARES
from tests.training.two_processes import SPOILED
from tests.training.watched import Seen

RUNS = ["dp2-nan-activations", "tp2-nan-activations", "tp2-nan-norm"]
pytestmark = pytest.mark.parametrize("name", RUNS)


def reports(folder: Path, step: int) -> list[dict[str, Any]]:
    files = [folder / "non_finite" / f"step_{step:07d}_rank{rank}.json" for rank in (0, 1)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def test_all_ranks_skip_the_same_steps(together: Path, name: str) -> None:
    for seen in Seen(together / name, ranks=2).seen:
        digests = seen["digests"]
        unchanged = [step for step in range(1, len(digests)) if digests[step] == digests[step - 1]]
        assert unchanged == seen["skipped_steps"] == list(SPOILED)


def test_replicas_stay_equal(together: Path, name: str) -> None:
    first, second = (seen["digests"] for seen in Seen(together / name, ranks=2).seen)
    assert (first == second) == name.startswith("dp2"), "tensor-parallel ranks hold different parts"


def test_training_goes_on_until_too_many_in_a_row(together: Path, name: str) -> None:
    seen = Seen(together / name, ranks=2)
    assert [rank["completed"] for rank in seen.seen] == [None, None]
    assert [record["finite"] for record in seen.records] == [True, False, True, False, False]
    assert math.isfinite(seen.losses[2])


def test_a_skipped_step_is_part_of_the_state(together: Path, name: str) -> None:
    state = TrainerState.read(together / name / "checkpoints" / "iter_0000003")
    assert state.skipped_steps == [2]
    assert state.consumed_samples == 3 * BATCH


def test_what_was_saved_is_finite(together: Path, name: str) -> None:
    assert all(tensor.isfinite().all() for tensor in Seen(together / name, 2).tensors().values())


@pytest.mark.parametrize("step", SPOILED)
def test_a_report_names_the_batch(together: Path, name: str, step: int) -> None:
    found = reports(together / name, step)
    positions = [
        [p for b in report["micro_batches"] for p in b["sample_positions"]] for report in found
    ]
    expected = list(range((step - 1) * BATCH, step * BATCH))
    if name.startswith("dp2"):
        assert positions == [expected[: BATCH // 2], expected[BATCH // 2 :]]
    else:
        assert positions == [expected, expected]
    for rank, report in enumerate(found):
        assert (report["step"], report["rank"]) == (step, rank)
        for batch in report["micro_batches"]:
            assert set(batch["datasets"]) <= SHARES.keys()
            assert batch["weights_finite"]
            assert len(batch["first_tokens"]) > 8


def test_a_report_names_the_damaged_parameters(together: Path, name: str) -> None:
    damaged = reports(together / name, 4)[1]["parameters_with_non_finite_gradient"]
    if name == "tp2-nan-norm":
        assert damaged == ["decoder.final_layernorm.weight"]
    else:
        assert "decoder.layers.0.mlp.linear_fc2.weight" in damaged


def test_steps_before_the_fault_are_those_of_a_healthy_run(together: Path, name: str) -> None:
    healthy = Seen(together / name.partition("-")[0], ranks=2)
    found = Seen(together / name, ranks=2)
    assert found.losses[0] == healthy.losses[0]
    assert torch.equal(
        found.seen[0]["gradients"]["decoder.final_layernorm.weight"],
        healthy.seen[0]["gradients"]["decoder.final_layernorm.weight"],
    )
