"""The numbers of a report: those that the stages left, read at any moment of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.compare import compare
from megatron_soaes.files import write_text
from megatron_soaes.pipeline.manifest import read_manifest
from megatron_soaes.pipeline.report.corpus import Tokens
from megatron_soaes.pipeline.report.curves import MOST_POINTS
from megatron_soaes.pipeline.report.data import read_report
from megatron_soaes.pipeline.report.page import write_report
from megatron_soaes.pipeline.report.stages import GateEntry
from megatron_soaes.pipeline.status import State
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.training.progress import BestCheckpoint
from tests.pipeline.report.played import RECIPE, play, project


def test_stages_read_what_others_make(finished: Recipe) -> None:
    stages = {stage.name: stage for stage in read_report(finished).stages}
    assert {stage.state for stage in stages.values()} == {State.DONE}
    assert stages["cpt"].reads == ["preprocess-news", "preprocess-held", "import-target"]
    assert stages["pair"].reads == ["hf", "small-hf"]
    assert stages["cpt"].gates == [
        GateEntry("validation.held.loss <= 3", 3.0, True),
        GateEntry("trained_tokens >= 100", 640.0, True),
    ]


def test_lineage_is_that_of_the_manifests(finished: Recipe) -> None:
    for stage in read_report(finished).stages:
        manifest = read_manifest(finished.workdir / stage.name)
        assert manifest is not None
        assert stage.lineage is not None
        read = {file.name: file.sha256 for file in stage.lineage.inputs}
        assert read == {name: one["hash"] for name, one in manifest.inputs.items()}
        made = {file.name: file.sha256 for file in stage.lineage.outputs}
        assert made == {name: one.hash for name, one in manifest.outputs.items()}
        assert stage.lineage.code == manifest.code


def test_a_curve_has_every_step_and_the_best_validation(finished: Recipe) -> None:
    curve = read_report(finished).curves[0]
    assert (curve.stage, curve.step, curve.steps, curve.steps_a_point) == ("cpt", 40, 40, 1)
    assert curve.not_finite == 1
    assert len(curve.loss) == 39
    assert curve.held_out[0].losses == [(0, 3.0), (10, 2.75), (20, 2.5), (30, 2.75), (40, 3.0)]
    assert curve.held_out[0].tokens == 640
    assert (curve.best, curve.best_of) == (BestCheckpoint(20, 2.5), "held")


def test_a_long_curve_is_told_in_means(tmp_path: Path) -> None:
    recipe = project(tmp_path)
    steps = 7 * MOST_POINTS
    lines = [json.dumps({"step": n, "loss": float(n), "seconds": 1}) for n in range(1, steps + 1)]
    write_text(recipe.workdir / "cpt" / "metrics.jsonl", "\n".join(lines) + "\n")
    curve = read_report(recipe).curves[0]
    assert len(curve.loss) == MOST_POINTS
    assert curve.steps_a_point == 7
    assert curve.loss[0] == (7, 4.0)
    whole = sum(loss for _, loss in curve.loss) / MOST_POINTS
    assert math.isclose(whole, (steps + 1) / 2)


def test_comparisons_are_those_of_the_evaluation(finished: Recipe) -> None:
    evaluation = read_report(finished).evaluations[0]
    row = evaluation.rows[0]
    assert (row.suite, row.measure, row.unit, row.items) == ("exam", "facts.accuracy", "%", 60)
    assert [one.checkpoint for one in row.values] == ["import", "cpt", "narrow", "control"]
    assert row.values[0].ratio is None
    assert [one.change for one in row.values[1:]] == ["better"] * 3
    folder = finished.workdir / "exams"
    paired = compare([folder / "import.json", folder / "cpt.json"], seed=finished.seed).rows[0]
    estimate = row.values[1].estimate
    assert (estimate.value, estimate.low) == (paired.paired.new.value, paired.paired.new.low)
    assert [one.verdict for one in evaluation.targets] == ["shown"] * 3


def test_the_control_is_the_base_of_the_curriculum(finished: Recipe) -> None:
    (control,) = read_report(finished).evaluations[0].controls
    assert (control.control, control.staged) == ("control", "narrow")
    assert [row.suite for row in control.rows] == ["exam", "exam"]
    base, staged = control.rows[0].values
    assert (base.checkpoint, staged.checkpoint, staged.change) == ("control", "narrow", "better")
    assert staged.ratio is not None
    assert staged.ratio.low is not None
    assert staged.ratio.low > 1


def test_a_checkpoint_measured_alone_has_intervals_too(tmp_path: Path) -> None:
    recipe = project(tmp_path, RECIPE.replace("[import, cpt, narrow, control]", "[cpt]"))
    play(recipe, until="respond")
    (evaluation,) = read_report(recipe).evaluations
    for row in evaluation.rows:
        (one,) = row.values
        estimate = one.estimate
        assert estimate.value is not None
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < estimate.value < estimate.high


def test_drafts_are_told_before_and_after(finished: Recipe) -> None:
    report = read_report(finished)
    (acceptance,) = report.acceptance
    assert (acceptance.before.alpha, acceptance.after.alpha) == (0.5, 0.9)
    assert len(acceptance.after.tokens_per_pass) == 4
    fast, exact = report.speeds
    assert (fast.mode, exact.mode, exact.exact) == ("fast", "exact", True)
    assert [row.draft_length for row in fast.rows if not row.adaptive] == [1, 3]
    assert fast.rows[1].speedup.value == 1.625
    assert (fast.rows[1].same_text, fast.prompts) == (5, 5)


def test_the_funnel_adds_up(finished: Recipe) -> None:
    corpus = read_report(finished).corpus
    assert [row.dataset for row in corpus.tokens] == ["news", "chats", "held"]
    for row in corpus.tokens:
        assert row.read == row.kept + sum(row.left_out.values())
    assert corpus.tokens[1] == Tokens(
        "chats", "conversations", 10, {"no_messages": 1, "too_long": 1}, 8, 400, 100
    )
    assert corpus.answers[0].left_out == {"repeated": 2}
    assert [row.stage for row in corpus.consumed] == ["cpt", "broad", "narrow", "control", "distil"]


def test_the_curation_that_a_dataset_comes_from_is_found(finished: Recipe) -> None:
    (curation,) = read_report(finished).corpus.curations
    assert (curation.datasets, curation.problem) == (["news"], "")
    assert curation.passages[0].read.documents == 100


def test_a_foreign_curation_is_told_of_and_stops_nothing(tmp_path: Path) -> None:
    recipe = project(tmp_path)
    write_text(tmp_path / "curated" / "outcome.json", "{}")
    (curation,) = read_report(recipe).corpus.curations
    assert "outcome.json" in curation.problem
    assert "curated" in (write_report(recipe)).read_text("utf-8")


def test_a_gate_that_does_not_hold_is_told(tmp_path: Path) -> None:
    recipe = project(tmp_path, RECIPE.replace("trained_tokens >= 100", "trained_tokens >= 10000"))
    with pytest.raises(UserError, match="trained_tokens"):
        play(recipe)
    cpt = next(stage for stage in read_report(recipe).stages if stage.name == "cpt")
    assert cpt.state is State.BLOCKED
    assert cpt.gates[1] == GateEntry("trained_tokens >= 10000", 640.0, False)
    assert "does not hold" in write_report(recipe).read_text("utf-8")


def test_missing_files_block_a_stage_and_not_the_report(tmp_path: Path) -> None:
    recipe = project(tmp_path)
    (tmp_path / "chats.jsonl").unlink()
    stages = {stage.name: stage for stage in read_report(recipe).stages}
    assert stages["preprocess-chats"].state is State.BLOCKED
    assert "preprocess-chats" in stages["broad"].reads


def test_the_numbers_are_plain_json(numbers: dict[str, Any], finished: Recipe) -> None:
    text = (finished.workdir / "report.json").read_text("utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    assert numbers["format_version"] == 1
    assert numbers["stages"][0]["state"] == "done"


def test_a_report_is_written_again_over_the_last(tmp_path: Path) -> None:
    recipe = project(tmp_path)
    first = write_report(recipe).read_text("utf-8")
    play(recipe, until="cpt", left_behind=3)
    again = write_report(load_recipe(tmp_path / "recipe.yaml")).read_text("utf-8")
    assert "0 of 15 stages are done" in first
    assert "5 of 15 stages are done" in again
    assert not list(recipe.workdir.glob(".report*"))
