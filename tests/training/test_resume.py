"""An interrupted run that goes on is the run that was never interrupted."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_soaes.checkpoint.directory import TRACKER
from megatron_soaes.errors import UserError
from megatron_soaes.training.trainer import train
from tests.training import meddling
from tests.training.material import BATCH, SEQUENCE, make_job
from tests.training.watched import Seen, relative, run

TIMING = ("seconds", "tokens_per_second", "tflops_per_process", "mfu", "peak_memory_gib")


def figures(seen: Seen) -> list[dict[str, Any]]:
    """What was logged of each step, without what the clock says."""
    return [{k: v for k, v in record.items() if k not in TIMING} for record in seen.records]


@pytest.mark.parametrize(
    ("straight", "resumed", "ranks"),
    [
        ("one", "one-resumed", 1),
        ("one-bf16", "one-bf16-resumed", 1),
        ("tp2-sp", "tp2-sp-resumed", 2),
        ("tp2-sp-bf16", "tp2-sp-bf16-resumed", 2),
    ],
)
def test_a_resumed_run_repeats_the_uninterrupted_one_bitwise(
    together: Path, straight: str, resumed: str, ranks: int
) -> None:
    expected, found = Seen(together / straight, ranks), Seen(together / resumed, ranks)

    assert [record["step"] for record in found.records] == [*range(1, len(found.records) + 1)]
    assert figures(found) == figures(expected)
    assert asdict(found.state) == asdict(expected.state)
    assert found.state.consumed_samples == BATCH * len(found.records)
    tensors = expected.tensors()
    assert (
        sum(".exp_avg." in key for key in tensors) == sum(".exp_avg_sq." in k for k in tensors) > 5
    )
    for key, tensor in found.tensors().items():
        assert torch.equal(tensor, tensors.pop(key)), key
    assert not tensors
    for one, two in zip(expected.seen, found.seen, strict=True):
        assert one["digests"][-1] == two["digests"][-1]


@pytest.mark.parametrize(
    ("name", "ranks", "last"),
    [("one-stopped", 1, 7), ("tp2-sp-stopped", 2, 7), ("tp2-sp-bf16-stopped", 2, 3)],
)
def test_one_rank_that_is_asked_to_stop_stops_all(
    together: Path, name: str, ranks: int, last: int
) -> None:
    run_ = Seen(together / name, ranks)
    assert [seen["completed"] for seen in run_.seen] == [False] * ranks
    assert run_.state.iteration == len(run_.records) == last
    assert run_.state.consumed_samples == last * BATCH
    assert run_.state.trained_tokens < last * BATCH * SEQUENCE
    assert sum(run_.state.consumed_samples_by_source.values()) == last * BATCH


@pytest.mark.parametrize(("before", "name"), [("tp2-sp", "tp2-sp-to-dp2"), ("one", "one-to-tp2")])
def test_a_run_goes_on_in_another_layout(together: Path, before: str, name: str) -> None:
    found = Seen(together / name, ranks=2)
    expected = Seen(together / before, ranks=len(list((together / before).glob("seen_by_rank*"))))
    assert [seen["completed"] for seen in found.seen] == [True, True]
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)
    assert found.state.consumed_samples_by_source == expected.state.consumed_samples_by_source
    weights = expected.tensors()
    for key, tensor in found.tensors().items():
        assert relative(weights[key], tensor) < 1e-4, key


@pytest.fixture
def stopped(alone: Path, tmp_path: Path) -> Path:
    """A run that was left after step 7 of 20, to go on in."""
    return Path(shutil.copytree(alone / "one-stopped", tmp_path / "run"))


CHANGES: dict[str, dict[str, Any]] = {
    "blend": {"shares": {"domain": 0.6, "general": 0.4}},
    "global_batch_size": {"global_batch_size": 2 * BATCH},
    "optimizer": {"optimizer": {"lr": 5e-3}},
    "schedule": {"schedule": {"shape": "cosine"}},
    "steps": {"steps": 12},
}


@pytest.mark.parametrize("field", CHANGES)
def test_an_undeclared_change_is_refused(material: Path, stopped: Path, field: str) -> None:
    job = make_job(material, stopped, **CHANGES[field])
    with pytest.raises(UserError) as caught:
        train(job)
    assert f"{field}: was " in caught.value.found
    assert field in caught.value.fix
    assert len(Seen(stopped).records) == 7, "nothing was changed"


def test_the_rate_is_named_with_both_values(material: Path, stopped: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(make_job(material, stopped, **CHANGES["optimizer"]))
    was, now = caught.value.found.split(", is ")
    assert "'lr': 0.01" in was
    assert "'lr': 0.005" in now


def test_a_declared_rate_takes_effect(material: Path, stopped: Path) -> None:
    job = make_job(material, stopped, **CHANGES["optimizer"], allow_changes=["optimizer"])
    assert run(job, meddling.terminate_in(9)) is False
    rates = [record["lr"] for record in Seen(stopped).records]
    assert rates == [1e-2] * 7 + [5e-3] * 2


def test_a_declared_rate_changes_the_weights(material: Path, alone: Path, stopped: Path) -> None:
    job = make_job(material, stopped, **CHANGES["optimizer"], allow_changes=["optimizer"])
    run(job, meddling.terminate_in(9))
    expected, found = Seen(alone / "one"), Seen(stopped)
    assert found.losses[:8] == expected.losses[:8]
    assert abs(found.losses[8] - expected.losses[8]) > 1e-4


def test_a_declared_batch_goes_on_at_the_same_sample(material: Path, stopped: Path) -> None:
    changes: dict[str, Any] = {"global_batch_size": 2 * BATCH, "steps": 10}
    job = make_job(material, stopped, **changes, allow_changes=["global_batch_size", "blend"])
    with pytest.raises(UserError, match="steps: was 20, is 10"):
        train(job)
    allowed = ["global_batch_size", "blend", "steps"]
    assert run(make_job(material, stopped, **changes, allow_changes=allowed)) is True
    assert Seen(stopped).state.consumed_samples == 7 * BATCH + 3 * 2 * BATCH


def test_a_finished_run_is_only_validated_again(
    material: Path, alone: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(alone / "one", tmp_path / "run"))
    result = train(make_job(material, out))
    assert result.completed
    assert result.metrics["iteration"] == 20
    assert result.metrics["skipped_steps"] == 0
    assert result.metrics["validation"]["held_out"]["loss"] > 0
    assert figures(Seen(out)) == figures(Seen(alone / "one"))


def test_a_run_can_go_on_from_an_older_checkpoint(
    material: Path, alone: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(alone / "one-bf16-resumed", tmp_path / "run"))
    (out / "checkpoints" / TRACKER).write_text("2\n")
    expected = Seen(alone / "one-bf16-resumed")
    run(make_job(material, out, precision={"dtype": "bf16"}, steps=6, checkpoints={"every": 2}))
    assert figures(Seen(out)) == figures(expected)
    assert asdict(Seen(out).state) == asdict(expected.state)
