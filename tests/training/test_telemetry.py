"""metrics.jsonl: what a record holds, and what of it survives an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.training.records import METRICS_FILE, keep_records_until, read_records
from megatron_soaes.training.telemetry import Telemetry

RECORD: dict[str, Any] = {
    "loss": 2.0,
    "lr": 1e-3,
    "grad_norm": 1.5,
    "finite": True,
    "seconds": 0.1,
    "tokens_per_second": 1280.0,
    "tflops_per_process": 0.01,
    "mfu": 0.2,
    "peak_memory_gib": 0.5,
}


def steps_of(metrics: Path) -> list[int]:
    return [record["step"] for record in read_records(metrics)]


def test_a_resumed_run_drops_what_it_will_do_again(tmp_path: Path) -> None:
    metrics = tmp_path / METRICS_FILE
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3, 4)]
    lines.insert(2, json.dumps({"step": 2, "validation": {}}))
    metrics.write_text("\n".join(lines) + "\n", encoding="utf-8")
    keep_records_until(metrics, 2)
    assert steps_of(metrics) == [1, 2, 2]


def test_a_run_that_begins_anew_validates_anew_before_the_first_step(tmp_path: Path) -> None:
    metrics = tmp_path / METRICS_FILE
    metrics.write_text('{"step": 0, "validation": {}}\n{"step": 1}\n', encoding="utf-8")
    keep_records_until(metrics, 0)
    assert steps_of(metrics) == []


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"step"', "{", '{"step": 3, "loss": 1.0'])
def test_a_line_cut_by_a_crash_is_dropped(tmp_path: Path, cut: str) -> None:
    metrics = tmp_path / METRICS_FILE
    metrics.write_text('{"step": 1}\n{"step": 2}\n' + cut, encoding="utf-8")
    keep_records_until(metrics, 9)
    assert steps_of(metrics) == [1, 2]
    assert metrics.read_text(encoding="utf-8").endswith("\n")


def test_a_first_run_has_nothing_to_drop(tmp_path: Path) -> None:
    keep_records_until(tmp_path / METRICS_FILE, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_line_says_how_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry(tmp_path, resumed_at=0, steps=20, log_every=10)
    for step in range(1, 13):
        telemetry.step(step, RECORD)
    telemetry.step(13, RECORD | {"finite": False})
    telemetry.validation(13, {"general": {"loss": 1.25, "perplexity": 3.5, "tokens": 64.0}})
    telemetry.close()
    said = " ".join(capsys.readouterr().out.split())
    assert "step 10/20" in said
    assert "step 11/20" not in said
    assert "loss 2.0000" in said
    assert "step skipped" in said, "a step that is not finite is always told"
    assert "validation after step 13: general 1.2500" in said
    assert steps_of(tmp_path / METRICS_FILE) == [*range(1, 14), 13]


def test_a_run_records_every_step_with_every_figure(alone: Path) -> None:
    records = read_records(alone / "one" / METRICS_FILE)
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 21))
    for record in steps:
        assert record.keys() == {"step", *RECORD}
        assert record["tokens_per_second"] * record["seconds"] == pytest.approx(4 * 32)
        assert record["peak_memory_gib"] > 0.05
    validations = [record for record in records if "validation" in record]
    assert [record["step"] for record in validations] == [0, 20]
    assert validations[0]["validation"]["held_out"].keys() == {"loss", "perplexity", "tokens"}


def test_tensorboard_gets_the_same_figures(alone: Path) -> None:
    assert list((alone / "one" / "tensorboard").glob("events.out.tfevents.*"))
