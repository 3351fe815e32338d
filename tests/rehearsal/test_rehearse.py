"""One real rehearsal of a small recipe for a cluster; and one that cannot come to its end."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.problems import RecipeErrors
from megatron_soaes.rehearsal.report import RehearsalReport
from megatron_soaes.rehearsal.run import rehearse
from tests.rehearsal.small_recipes import large, write_large, write_lines

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


def test_a_recipe_that_breaks_a_rule_is_not_rehearsed(tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors, match="global_batch_size"):
        rehearse(large(tmp_path, "cpt.global_batch_size=7"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recipe_whose_shapes_are_nowhere_asks_for_them(tmp_path: Path) -> None:
    recipe = large(tmp_path)
    (tmp_path / "base.json").unlink()
    with pytest.raises(UserError, match=r"models\.target\.config"):
        rehearse(recipe, tmp_path / "out")
