"""Traces of the steps and the ranks that were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training import meddling
from tests.training.material import make_job
from tests.training.watched import run


def traces(out: Path) -> list[Path]:
    return sorted((out / "traces").glob("*.json")) if (out / "traces").exists() else []


def test_only_the_wanted_rank_and_steps_are_traced(together: Path) -> None:
    (trace,) = traces(together / "dp2")
    assert trace.name.startswith("rank1.")
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert {e["name"] for e in events if e["name"].startswith("ProfilerStep")} == {
        "ProfilerStep#1",
        "ProfilerStep#2",
    }, "the profiler counts from 0: steps 2 and 3"
    assert any(event["name"] == "aten::mm" for event in events)


def test_nothing_is_traced_unasked(together: Path) -> None:
    assert traces(together / "one") == traces(together / "tp2") == []


@pytest.mark.usefixtures("one_process")
def test_a_run_that_ends_before_still_leaves_what_it_saw(material: Path, tmp_path: Path) -> None:
    job = make_job(material, tmp_path, profile={"steps": (2, 9)})
    run(job, meddling.terminate_in(3))
    assert len(traces(tmp_path)) == 1
