"""The GPU benchmark as a smoke run: the same code, a tiny model, whatever device is here."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.gpu import run_all
from benchmarks.gpu.ceiling import datasheet_tflops, measured_tflops
from benchmarks.gpu.measurements import MEASUREMENTS, Measurement
from benchmarks.gpu.results import Report, Row, append, section
from benchmarks.subject import FULL, TINY
from benchmarks.training_step import Figures, ours, transformers_peer
from megatron_soaes.accelerator.machine import Machine

BARE = Machine("cpu", None, 0, None, 0, 4, 16 * 2**30, {"torch": "2.11.0"}, None, {})
H200 = replace(
    BARE,
    device="cuda",
    gpu_name="NVIDIA H200",
    gpu_count=1,
    compute_capability=(9, 0),
    versions={"torch": "2.11.0", "transformer-engine": "2.11.0"},
)
BF16, DELAYED = MEASUREMENTS[:2]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU on which the checks of tests/gpu went as they do there."""
    monkeypatch.setattr(run_all, "read_machine", lambda: BARE)
    monkeypatch.setattr(run_all, "run_checks", lambda deadline: (True, "14 skipped"))


@pytest.mark.usefixtures("here")
def test_a_smoke_run_writes_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_all, "MEASUREMENTS", (BF16, DELAYED))
    results = tmp_path / "results.md"
    assert run_all.main(["--tiny", "--results", str(results)]) == 0
    lines = results.read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith("UTC, CPU, 4 cores")
    assert "`python -m benchmarks.gpu.run_all --tiny`" in lines
    assert "- GPU checks: 14 skipped" in lines
    assert "- Versions: torch 2.11.0" in lines
    (measured,) = (line for line in lines if line.startswith("| bf16 |"))
    cells = [cell.strip() for cell in measured.strip("|").split("|")]
    assert all(float(cell.replace(",", "")) > 0 for cell in (*cells[1:4], cells[6]))
    assert "| FP8 delayed | not run: no delayed FP8 on this machine |" in "\n".join(lines)


@pytest.mark.usefixtures("here")
def test_a_failed_measurement_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_all, "MEASUREMENTS", (Measurement("nobody knows", ours),))
    results = tmp_path / "results.md"
    assert run_all.main(["--tiny", "--results", str(results)]) == 1
    assert "| nobody knows | failed: " in results.read_text(encoding="utf-8")


@pytest.mark.usefixtures("here")
def test_failed_checks_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_all, "run_checks", lambda deadline: (False, "1 failed, 13 passed"))
    monkeypatch.setattr(run_all, "MEASUREMENTS", (DELAYED,))
    results = tmp_path / "results.md"
    assert run_all.main(["--tiny", "--results", str(results)]) == 1
    assert "- GPU checks: 1 failed, 13 passed" in results.read_text(encoding="utf-8")


def test_what_has_no_time_left_is_a_failure() -> None:
    over = time.monotonic() - 1
    assert run_all.run(BF16, BARE, True, over) == Row("bf16", None, "failed: no time left")
    assert run_all.run_checks(over) == (False, "stopped, no time left")


@pytest.mark.usefixtures("here")
def test_the_whole_model_is_not_tried_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_all.main(["--results", str(tmp_path / "results.md")]) == 1
    assert "use --tiny" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_peer_trains_the_same_tokens() -> None:
    figures = transformers_peer(TINY)
    assert figures.first_loss == pytest.approx(math.log(TINY.shape.vocab_size), rel=0.05)
    assert figures.last_loss < figures.first_loss
    assert figures.seconds_per_step > 0
    assert figures.peak_memory_bytes > 0


def test_fp8_needs_the_gpu_and_transformer_engine() -> None:
    assert BF16.missing(BARE) is None
    assert DELAYED.missing(BARE) == "no delayed FP8 on this machine"
    assert DELAYED.missing(H200) is None
    bare_h200 = replace(H200, versions={"torch": "2.11.0"})
    assert DELAYED.missing(bare_h200) == "transformer-engine is not installed"


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.5),
        ("NVIDIA H20", 148),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", None),
        (None, None),
    ],
)
def test_the_datasheet_is_found_by_the_name_of_the_gpu(
    name: str | None, tflops: float | None
) -> None:
    assert datasheet_tflops(replace(BARE, gpu_name=name)) == tflops


def test_the_measured_ceiling_is_a_rate() -> None:
    assert 0 < measured_tflops(64, repeats=2) < 1e4


def test_the_figures_of_a_row() -> None:
    """0.5 s for 32,768 tokens of 1.05e10 model FLOPs: 688 TFLOP/s."""
    figures = Figures(0.5, 50 * 2**30, 12.0, 10.0)
    report = Report(H200, FULL, "command", "14 passed", 989.5, 800.0, [Row("bf16", figures)])
    text = section(report, datetime(2027, 1, 2, 3, 4, tzinfo=UTC))
    flops = FULL.shape.flops_per_token(4096)
    tflops = 32768 / 0.5 * flops / 1e12
    assert text.startswith("## 2027-01-02 03:04 UTC, NVIDIA H200\n")
    assert (
        f"| bf16 | 500.0 | 65,536 | {tflops:.3g} | {tflops / 989.5:.1%} | {tflops / 800:.1%} "
        "| 50.0 | 12.000 to 10.000 |"
    ) in text
    assert FULL.shape.parameters == pytest.approx(1.54e9, rel=0.01)


def test_sections_are_added_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "results.md"
    append(file, "## first\n")
    append(file, "## second\n")
    assert file.read_text(encoding="utf-8") == "## first\n\n## second\n"
    assert list(tmp_path.iterdir()) == [file]
