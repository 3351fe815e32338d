"""What one stage hands to the next: the best checkpoint, and the optimizer if it is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_soaes.checkpoint import directory
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.checkpoint.trainer_state import TrainerState
from megatron_soaes.errors import UserError
from megatron_soaes.training.job import TrainingJob
from megatron_soaes.training.records import METRICS_FILE, read_records
from megatron_soaes.training.trainer import Trainer, train
from tests.training.material import make_job, make_sft_job

pytestmark = pytest.mark.usefixtures("one_process")

WATCHED: dict[str, Any] = {
    "steps": 6,
    "validation": {"sets": ["held_out"], "every": 2, "best": "held_out"},
    "checkpoints": {"every": 1000, "keep_last": 1},
    # So high a rate that the held-out loss falls first and then rises.
    "optimizer": {"lr": 0.1},
}


def held_out_losses(out: Path) -> dict[int, float]:
    records = read_records(out / METRICS_FILE)
    found = {r["step"]: r["validation"]["held_out"]["loss"] for r in records if "validation" in r}
    return {step: loss for step, loss in found.items() if step}


@pytest.fixture
def watched(material: Path, tmp_path: Path) -> TrainingJob:
    job = make_job(material, tmp_path / "watched", **WATCHED)
    assert train(job).metrics["best"] is not None
    return job


def test_the_best_checkpoint_is_kept_by_name(watched: TrainingJob) -> None:
    losses = held_out_losses(watched.out)
    best = min(losses, key=lambda step: losses[step])
    assert best < 6, "the last step is best anyway, so nothing is tested"
    assert directory.best_iteration(watched.checkpoints) == best
    # keep_last: 1 would have deleted it.
    assert directory.iterations(watched.checkpoints) == [best, 6]
    state = TrainerState.read(directory.iteration_directory(watched.checkpoints, 6))
    assert state.best == {"iteration": best, "loss": losses[best]}
    assert {entry["step"]: entry["losses"]["held_out"] for entry in state.validation} == losses


def test_a_stage_can_start_from_the_best_checkpoint(
    watched: TrainingJob, material: Path, tmp_path: Path
) -> None:
    best = directory.best_iteration(watched.checkpoints)
    job = replace(make_job(material, tmp_path / "next"), start=watched.checkpoints)
    from_best = Trainer(replace(job, start_at_best=True)).engine.chunks[0]
    from_last = Trainer(job).engine.chunks[0]
    reader = TorchDistReader(directory.iteration_directory(watched.checkpoints, best))
    key = "decoder.final_layernorm.weight"
    stored = reader.read_slice(key, [0], reader.shapes[key])
    assert torch.equal(from_best.state_dict()[key], stored)
    assert not torch.equal(from_last.state_dict()[key], stored)


def test_a_stage_without_a_best_checkpoint_says_so(material: Path, tmp_path: Path) -> None:
    job = make_job(material, tmp_path / "plain", steps=2)
    train(job)
    with pytest.raises(UserError, match=r"validation\.best"):
        directory.best_iteration(job.checkpoints)


def moments(job: TrainingJob) -> list[torch.Tensor]:
    (optimizer,) = Trainer(job).engine.optimizer.chained_optimizers
    state = optimizer.optimizer.state
    return [values["exp_avg"] for values in state.values() if "exp_avg" in values]


def test_the_optimizer_starts_anew_unless_it_is_to_go_on(material: Path, tmp_path: Path) -> None:
    before = make_job(material, tmp_path / "before", steps=3)
    train(before)
    after = replace(make_sft_job(material, tmp_path / "after"), start=before.checkpoints)
    assert not any(moment.any() for moment in moments(after))
    going_on = replace(after, stage=after.stage.model_copy(update={"continue_optimizer": True}))
    assert all(moment.any() for moment in moments(going_on))
    assert Trainer(going_on).state.iteration == 0


def test_an_overfitting_source_is_called_out(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_sft_job(material, tmp_path / "chat", steps=1)
    trainer = Trainer(job)
    for step, (chats, other) in enumerate([(2.0, 3.0), (2.1, 2.9), (2.3, 2.8)], start=1):
        figures = {"chats": {"loss": chats}, "other": {"loss": other}}
        trainer._judge(step, figures)
    assert "chats overfits" in capsys.readouterr().out
    records = read_records(tmp_path / "chat" / METRICS_FILE)
    (warning,) = (record["overfitting"] for record in records if "overfitting" in record)
    assert warning == pytest.approx({"chats": 0.3})
