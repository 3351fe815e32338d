"""What `soaes status` tells of a run: done, waiting, interrupted, running, changed, blocked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_soaes.cli import app
from megatron_soaes.errors import ExitCode
from megatron_soaes.pipeline.lock import is_at_work, only_run_of
from megatron_soaes.pipeline.run import run
from megatron_soaes.pipeline.status import StageStatus, State, read_status
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.training.records import METRICS_FILE

RECIPE = """
version: 1
name: tokens
workdir: work
models: {target: {source: model}}
data:
  datasets: {one: {text: [one.jsonl]}, two: {text: [two.jsonl]}}
  blends: {all: {weights: {one: 1}}}
stages:
  - {name: cpt, kind: cpt, blend: all, steps: 40, sequence_length: 16, global_batch_size: 1}
"""
ONE, TWO, IMPORT, CPT = "preprocess-one", "preprocess-two", "import-target", "cpt"


@pytest.fixture
def recipe(tmp_path: Path, source: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name * 40}) + "\n", "utf-8")
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


@pytest.fixture
def tokenized(recipe: Path) -> Path:
    """A recipe of which the datasets are made."""
    tokens = recipe.with_name("tokens.yaml")
    tokens.write_text(RECIPE.partition("stages:")[0], encoding="utf-8")
    assert run(load_recipe(tokens)) == ExitCode.OK
    return recipe


def status(recipe: Path) -> dict[str, StageStatus]:
    return {stage.name: stage for stage in read_status(load_recipe(recipe))}


def states(recipe: Path) -> dict[str, State]:
    return {name: stage.state for name, stage in status(recipe).items()}


def begin_training(recipe: Path) -> Path:
    """What 30 of 40 steps leave."""
    folder = recipe.parent / "work" / CPT
    folder.mkdir()
    (folder / "begun.json").write_text("{}")
    steps = [{"step": n, "loss": 5 - n / 10, "seconds": 3.0} for n in range(1, 31)]
    held_out = {"step": 20, "validation": {"domain": {"loss": 2.5}}}
    lines = [json.dumps(record) for record in (*steps[:20], held_out, *steps[20:])]
    (folder / METRICS_FILE).write_text("\n".join(lines) + '\n{"step": 31, "lo')
    return folder


def test_before_the_first_run_everything_waits_and_nothing_is_written(recipe: Path) -> None:
    assert set(states(recipe).values()) == {State.WAITING}
    assert not (recipe.parent / "work").exists()


def test_what_is_done_and_what_changed_since(tokenized: Path) -> None:
    assert states(tokenized)[ONE] is State.DONE
    assert states(tokenized)[CPT] is State.WAITING
    text = tokenized.parent / "one.jsonl"
    text.write_text(json.dumps({"text": "other"}) + "\n", "utf-8")
    found = status(tokenized)
    assert (found[ONE].state, found[ONE].why) == (State.CHANGED, f"changed inputs: {text}")
    assert found[TWO].state is State.DONE
    assert found[TWO].seconds is not None


def test_training_that_stopped_and_training_at_work(tokenized: Path) -> None:
    begin_training(tokenized)
    stopped = status(tokenized)[CPT]
    assert stopped.state is State.INTERRUPTED
    assert stopped.progress is not None
    assert (stopped.progress.step, stopped.progress.steps) == (30, 40)
    assert stopped.progress.figures == {"loss": 2.0, "domain": 2.5}
    assert stopped.progress.seconds_left is None
    with only_run_of(tokenized.parent / "work", CPT):
        running = status(tokenized)[CPT]
    assert running.state is State.RUNNING
    assert running.progress is not None
    assert running.progress.seconds_left == pytest.approx(10 * 3.0)


def test_missing_text_blocks_a_stage_and_what_reads_it_waits(tokenized: Path) -> None:
    (tokenized.parent / "one.jsonl").unlink()
    found = status(tokenized)
    assert found[ONE].state is State.BLOCKED
    assert found[ONE].why.startswith("data.datasets.one.text: found no file at")
    assert found[CPT].state is State.WAITING


def test_a_truncated_output_is_named(tokenized: Path) -> None:
    tokens = tokenized.parent / "work" / TWO / "two_text_document.bin"
    tokens.write_bytes(b"")
    assert status(tokenized)[TWO].why == f"missing or altered output: {tokens}"


def test_a_gate_that_does_not_hold_is_told_with_its_number(recipe: Path) -> None:
    export = "  - {name: hf, kind: export, gates: ['tensors <= 1']}\n"
    recipe.write_text(RECIPE.partition("stages:")[0] + "stages:\n" + export, encoding="utf-8")
    result = CliRunner().invoke(app, ["run", str(recipe)])
    assert "tensors = " in str(result.exception)
    found = status(recipe)["hf"]
    assert found.state is State.BLOCKED
    assert found.why.startswith("stage hf, gate 'tensors <= 1': found tensors = ")


def test_the_command_prints_a_table_or_data(tokenized: Path) -> None:
    begin_training(tokenized)
    table = CliRunner().invoke(app, ["status", str(tokenized)], env={"COLUMNS": "200"}).output
    assert "step 30 of 40" in table
    assert "interrupted" in table
    data = CliRunner().invoke(app, ["status", str(tokenized), "--json"]).output
    assert {one["stage"]: one["state"] for one in json.loads(data)}[CPT] == "interrupted"


def test_asking_for_the_status_needs_no_torch(tokenized: Path) -> None:
    code = (
        "import sys; from megatron_soaes.cli import app; "
        "app(['status', sys.argv[1]], standalone_mode=False); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tokenized)], check=True, capture_output=True)


def test_asking_whether_a_stage_is_at_work_does_not_hold_it(tmp_path: Path) -> None:
    assert not is_at_work(tmp_path, CPT)
    with only_run_of(tmp_path, CPT):
        assert is_at_work(tmp_path, CPT)
        assert not is_at_work(tmp_path, ONE)
    assert not is_at_work(tmp_path, CPT)
