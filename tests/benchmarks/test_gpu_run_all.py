"""The GPU benchmark as a smoke run: the same code, a tiny model, whatever device is here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.gpu import run_all
from benchmarks.gpu.ceiling import datasheet_tflops, measured_tflops
from benchmarks.gpu.measurements import BF16, DELAYED, MEASUREMENTS, PEER, Measurement, Step
from benchmarks.gpu.pair import PairFigures
from benchmarks.gpu.results import Report, Row, append, section, writer
from benchmarks.subject import SEVEN_B, SMALL, TINY
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
SMALL_BF16 = next(
    number for number, one in enumerate(MEASUREMENTS) if one == Measurement(SMALL, BF16)
)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU on which the checks of tests/gpu went as they do there."""
    monkeypatch.setattr(run_all, "read_machine", lambda: BARE)
    monkeypatch.setattr(run_all, "run_checks", lambda deadline: (True, "14 skipped"))


@pytest.mark.usefixtures("here")
def test_a_smoke_run_writes_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [measurement.step.name for measurement in MEASUREMENTS]
    monkeypatch.setattr(run_all, "MEASUREMENTS", MEASUREMENTS[: SMALL_BF16 + 1])
    results = tmp_path / "results.md"
    assert run_all.main(["--tiny", "--results", str(results)]) == 0
    lines = results.read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith("UTC, CPU, 4 cores")
    assert "`python -m benchmarks.gpu.run_all --tiny`" in lines
    assert "- GPU checks: 14 skipped" in lines
    assert "- Versions: torch 2.11.0" in lines
    without_engine, measured = (line for line in lines if line.startswith("| bf16 |"))
    assert "not run: transformer-engine is not installed" in without_engine, "precision-aware"
    cells = [cell.strip() for cell in measured.strip("|").split("|")]
    assert all(float(cell.replace(",", "")) > 0 for cell in (*cells[1:4], cells[6]))
    assert "| FP8 delayed | not run: no delayed FP8 on this machine |" in "\n".join(lines)
    assert [line[:9] for line in lines if line.startswith(("| fast", "| exact"))] == [
        "| fast | ", "| exact |",
    ]  # fmt: skip
    assert names[:3] == ["bf16", "FP8 tensorwise", PEER.name], "the most important first"


@pytest.mark.usefixtures("here")
def test_a_failed_measurement_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = (*MEASUREMENTS, Measurement(SMALL, Step("nobody knows", ours)))
    monkeypatch.setattr(run_all, "MEASUREMENTS", unknown)
    row = run_all.run(len(MEASUREMENTS), BARE, True, time.monotonic() + 60)
    assert (row.name, row.figures) == ("nobody knows", None)
    assert row.note.startswith("failed: ")


@pytest.mark.usefixtures("here")
def test_failed_checks_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_all, "run_checks", lambda deadline: (False, "1 failed, 13 passed"))
    monkeypatch.setattr(run_all, "MEASUREMENTS", (Measurement(SMALL, DELAYED),))
    monkeypatch.setattr(run_all, "run_pair", lambda tiny, deadline: "not asked here")
    results = tmp_path / "results.md"
    assert run_all.main(["--tiny", "--results", str(results)]) == 1
    assert "- GPU checks: 1 failed, 13 passed" in results.read_text(encoding="utf-8")


def test_what_has_no_time_left_is_a_failure() -> None:
    over = time.monotonic() - 1
    row = run_all.run(SMALL_BF16, BARE, True, over)
    assert row == Row(TINY, "bf16", None, "failed: no time left")
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
    delayed, whole = Measurement(SMALL, DELAYED), Measurement(SEVEN_B, BF16)
    assert Measurement(SMALL, BF16).missing(BARE) is None
    assert Measurement(SEVEN_B, PEER).missing(BARE) is None
    assert delayed.missing(BARE) == "no delayed FP8 on this machine"
    assert delayed.missing(H200) is whole.missing(H200) is None
    bare_h200 = replace(H200, versions={"torch": "2.11.0"})
    assert delayed.missing(bare_h200) == "transformer-engine is not installed"
    assert whole.missing(bare_h200) == "transformer-engine is not installed"


def test_a_model_that_does_not_fit_is_measured_with_fewer_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []

    def process(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        if "--smaller" in command:
            figures = json.dumps(asdict(Figures(1.0, 1, 2.0, 1.0)))
            return subprocess.CompletedProcess(command, 0, figures, "")
        error = "torch.OutOfMemoryError: CUDA out of memory.\n[W1] a library says goodbye\n"
        return subprocess.CompletedProcess(command, 1, "", error)

    monkeypatch.setattr(subprocess, "run", process)
    row = run_all.run(0, H200, False, time.monotonic() + 60)
    assert ["--smaller" in command for command in asked] == [False, True]
    assert row.figures is not None
    assert row.subject.name == "Qwen2.5-7B, 4096 tokens, 14 of 28 layers"


@pytest.mark.usefixtures("here")
def test_a_run_that_is_broken_off_leaves_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(number: int, *_: object) -> Row:
        if number == 1:
            raise KeyboardInterrupt
        return Row(SEVEN_B, "bf16", Figures(0.5, 2**30, 12.0, 10.0))

    monkeypatch.setattr(run_all, "run", found)
    with pytest.raises(KeyboardInterrupt):
        run_all.main(["--tiny", "--results", str(tmp_path / "results.md")])
    assert "| bf16 | 500.0 |" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_checks_that_hang_are_stopped_and_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    hanging = ["-c", "echo test_that_hangs; exec sleep 60"]
    assert run_all._python(hanging, time.monotonic() + 1) is None
    assert "test_that_hangs" in capfd.readouterr().err


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
    """0.5 s for 16,384 tokens of 4.7e10 model FLOPs: 1,541 TFLOP/s."""
    figures = Figures(0.5, 50 * 2**30, 12.0, 10.0, planned_memory_bytes=48 * 2**30)
    rows = [Row(SEVEN_B, "bf16", figures), Row(SMALL, "bf16", None, "failed: no time left")]
    pair = [PairFigures("exact", 4, 1.8, 1.7, 1.9, 0.9, identical=True)]
    report = Report(H200, "command", "14 passed", 989.5, rows, 800.0, pair)
    text = section(report, datetime(2027, 1, 2, 3, 4, tzinfo=UTC))
    flops = SEVEN_B.shape.flops_per_token(4096)
    tflops = 16384 / 0.5 * flops / 1e12
    assert text.startswith("## 2027-01-02 03:04 UTC, NVIDIA H200\n")
    assert (
        f"| bf16 | 500.0 | 32,768 | {tflops:.3g} | {tflops / 989.5:.1%} | {tflops / 800:.1%} "
        "| 50.0 | 48.0 | 12.000 to 10.000 |"
    ) in text
    assert "Qwen2.5-7B, 4096 tokens: 7,615.6M parameters, random weights, bf16 gradients" in text
    assert "Qwen2.5-1.5B, 4096 tokens: 1,543.7M parameters" in text
    assert "| exact | 4 | 1.80 (1.70 to 1.90) | 90.0% | yes |" in text


def test_a_section_is_added_at_the_end_and_grows(tmp_path: Path) -> None:
    file = tmp_path / "results.md"
    append(file, "## first\n")
    second = writer(file)
    second("## second, begun\n")
    second("## second, done\n")
    assert file.read_text(encoding="utf-8") == "## first\n\n## second, done\n"
    assert list(tmp_path.iterdir()) == [file]
