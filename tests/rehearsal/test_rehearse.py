"""One real rehearsal of a small recipe for a cluster; and one that cannot come to its end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.pipeline.lock import only_run_in
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.problems import RecipeErrors
from megatron_soaes.rehearsal.report import RehearsalReport
from megatron_soaes.rehearsal.run import rehearse
from tests.rehearsal.small_recipes import large, write_large, write_lines
from tests.slurm.cluster import wait_until

SHORT = """\
version: 1
name: short
workdir: runs/short
cluster: {gpu: h100-80g, nodes: 2, gpus_per_node: 8, transformer_engine: 2.11.0}
models:
  target:
    source: models/base
    config: base.json
    layout: {tensor_parallel: 8, data_parallel: 2}
data:
  datasets: {domain: {text: ['corpus/*.jsonl'], holdout: 0.001}}
  blends: {documents: {weights: {domain: 1}}}
stages:
  - name: cpt
    kind: cpt
    blend: documents
    steps: 8000
    sequence_length: 4096
    global_batch_size: 2
    precision: {fp8: {}}
    validation: {sets: [domain]}
    gates: ['validation.domain.loss <= 0.5']
  - {name: hf, kind: export, layout: {}}
"""


@dataclass(frozen=True)
class Rehearsal:
    folder: Path
    report: RehearsalReport

    @property
    def data(self) -> dict[str, object]:
        content: dict[str, object] = json.loads(
            (self.folder / "out/rehearsal.json").read_text(encoding="utf-8")
        )
        return content


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    folder = tmp_path_factory.mktemp("rehearsal")
    recipe = load_recipe(write_large(folder, SHORT))
    return Rehearsal(folder, rehearse(recipe, folder / "out"))


def test_every_stage_runs_to_its_end(rehearsal: Rehearsal) -> None:
    report = rehearsal.report
    assert report.exit_code == ExitCode.OK, report.text()
    assert report.failure is None
    ran = {one.name: one.layout for one in report.stages if one.seconds is not None}
    assert ran == {
        "preprocess-domain": "one process",
        "import-target": "one process",
        "cpt": "TP2 x DP2",
        "hf": "one process",
    }
    assert (rehearsal.folder / "out/run-1/hf/hf/config.json").is_file()


def test_the_report_tells_what_was_substituted_and_what_was_not_rehearsed(
    rehearsal: Rehearsal,
) -> None:
    text = (rehearsal.folder / "out/rehearsal.txt").read_text(encoding="utf-8")
    assert text == rehearsal.report.text()
    assert "FP8 products -> bf16 products" in text
    assert "NCCL collectives -> gloo collectives" in text
    assert "steps: 8000 -> 4 (stages.cpt)" in text
    assert "gate 'validation.domain.loss <= 0.5' of cpt: measured, not held to its bound" in text
    assert rehearsal.data["exit_code"] == 0
    assert rehearsal.data["not_rehearsed"] == list(rehearsal.report.not_rehearsed)


def test_the_jobs_of_the_recipe_as_it_is_are_written_and_read(rehearsal: Rehearsal) -> None:
    script = (rehearsal.folder / "out/slurm/submit.sh").read_text(encoding="utf-8")
    assert "--nodes=2" in script, "of the true layout"
    assert rehearsal.report.jobs is not None
    assert rehearsal.report.jobs.wrong == ()
    assert not (rehearsal.folder / "runs").exists(), "nothing is written where the recipe says"


def test_the_same_rehearsal_again_only_looks(
    rehearsal: Rehearsal, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(rehearsal.folder / "recipe.yaml")
    again = rehearse(recipe, rehearsal.folder / "out")
    assert again == rehearsal.report
    output = capfd.readouterr().out
    assert output.count("unchanged, skipped") == len(again.stages)


def test_a_stage_that_fails_is_named_with_its_logs(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus/own.jsonl", [{"body": "word " * 500}] * 40)
    recipe = load_recipe(write_large(tmp_path, SHORT))
    report = rehearse(recipe, tmp_path / "out")
    assert report.exit_code == ExitCode.BAD_INPUT
    assert report.failure is not None
    assert (report.failure.run, report.failure.stage) == (1, "preprocess-domain")
    assert report.failure.logs == tmp_path / "out/run-1/preprocess-domain/logs"
    assert "no key 'text'" in (report.failure.logs / "rank0.log").read_text(encoding="utf-8")
    assert "ended at stage preprocess-domain with exit code 2" in report.text()
    assert "cpt" in [one.name for one in report.stages if one.seconds is None]


@pytest.mark.parametrize(
    ("then", "code"),
    [("kill -TERM $PPID; wait", ExitCode.STOPPED), ("kill -KILL $$", 128 + signal.SIGKILL)],
    ids=["a wish to stop is passed on", "killed"],
)
def test_a_run_that_does_not_end_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, code: int
) -> None:
    recipe = large(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ntrap 'exit 75' TERM\nsleep 20 &\n{then}\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    report = rehearse(recipe, tmp_path / "out")
    assert report.exit_code == code
    assert "the same command goes on from there" in report.text()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_killed_rehearsal_leaves_no_run_behind(tmp_path: Path) -> None:
    recipe = write_large(tmp_path)
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    stub.chmod(0o755)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from megatron_soaes.recipe.load import load_recipe\n"
        "from megatron_soaes.rehearsal.run import rehearse\n"
        f"recipe = load_recipe(Path({str(recipe)!r}))\n"
        f"sys.executable = {str(stub)!r}\n"
        f"rehearse(recipe, Path({str(tmp_path / 'out')!r}))\n"
    )
    rehearsal = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    pid = tmp_path / "pid"
    wait_until(lambda: pid.is_file() and bool(pid.read_text()), 60)
    rehearsal.kill()
    rehearsal.wait()
    wait_until(lambda: not psutil.pid_exists(int(pid.read_text())), 10)


@pytest.mark.parametrize(
    ("is_file", "said"), [(True, "found a file"), (False, "found other files")]
)
def test_what_else_lies_in_the_folder_is_left_alone(
    tmp_path: Path, is_file: bool, said: str
) -> None:
    folder = tmp_path / "mine"
    mine = folder if is_file else folder / "slurm/submit.sh"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("my own")
    with pytest.raises(UserError, match=said):
        rehearse(large(tmp_path), folder)
    assert mine.read_text() == "my own"


def test_one_rehearsal_at_a_time_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out/material").mkdir(parents=True)
    with only_run_in(tmp_path / "out"), pytest.raises(UserError, match="another run at work"):
        rehearse(large(tmp_path), tmp_path / "out")


def test_an_environment_that_is_nowhere_is_told_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"cluster\.sh: found no file"):
        rehearse(large(tmp_path), tmp_path / "out", tmp_path / "cluster.sh")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    recipe = large(tmp_path)
    broken = tmp_path / "models/base/tokenizer.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    (broken.parent / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        rehearse(recipe, tmp_path / "out")
    assert str(broken) in str(caught.value)


def test_a_recipe_that_breaks_a_rule_is_not_rehearsed(tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors, match="global_batch_size"):
        rehearse(large(tmp_path, "cpt.global_batch_size=7"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_whose_shapes_are_nowhere_asks_for_them(tmp_path: Path) -> None:
    recipe = large(tmp_path)
    (tmp_path / "base.json").unlink()
    with pytest.raises(UserError, match=r"models\.target\.config"):
        rehearse(recipe, tmp_path / "out")
