"""A rank that freezes inside a save does not hold the others for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_soaes.accelerator import launch
from megatron_soaes.errors import ExitCode
from tests.training.material import make_material


def test_a_rank_that_freezes_inside_a_save_ends_the_job_and_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A frozen rank does not hear the request to end.
    monkeypatch.setattr(launch, "GRACE_S", 1.0)
    make_material(tmp_path)
    code = launch.launch("tests.checkpoint.freezing", [str(tmp_path)], 2, tmp_path / "logs")
    assert code == ExitCode.STALLED
    shown = capfd.readouterr().err
    assert f"no progress for 3 s in planning of {tmp_path}/run/checkpoints/.iter_0000001" in shown
    assert "rank 1 gives no sign of life" in shown
    assert not list((tmp_path / "run/checkpoints").glob("iter_*"))
