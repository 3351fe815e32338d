"""A job with a rank that stalls or dies ends by itself and says where every rank was."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from megatron_soaes.accelerator.launch import launch
from megatron_soaes.accelerator.watchdog import Watchdog
from megatron_soaes.errors import ExitCode


def test_a_stalled_rank_ends_the_job_with_the_stacks_of_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch("tests.accelerator.stalling", ["sleep"], 2, tmp_path) == ExitCode.STALLED
    shown = capfd.readouterr().err
    assert "rank 0: no progress for 2 s in the test" in shown
    assert "rank 1 is at oversleep (stalling.py:" in shown
    assert "in all_reduce" in shown
    log = (tmp_path / "rank1.log").read_text(encoding="utf-8")
    assert "rank 1: no progress for 2 s" in log
    assert "in oversleep" in log
    assert f"--- rank 1, {tmp_path / 'rank1.log'}" in shown, "its log is shown on the console"


def test_a_rank_that_is_frozen_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It does not hear the request to end either.
    monkeypatch.setattr("megatron_soaes.accelerator.launch.GRACE_S", 1.0)
    assert launch("tests.accelerator.stalling", ["stop"], 2, tmp_path) == ExitCode.STALLED
    assert "rank 1 gives no sign of life" in capfd.readouterr().err


def test_a_dead_rank_ends_the_job(tmp_path: Path) -> None:
    code = launch("tests.accelerator.stalling", ["die"], 2, tmp_path)
    assert code != 0
    assert code in (128 + 9, 1, ExitCode.STALLED)


def test_progress_keeps_a_job_alive() -> None:
    with Watchdog(1.0, "the test") as watchdog:
        for _ in range(6):
            time.sleep(0.3)
            watchdog.beat()
