"""Evaluate stages: every checkpoint on everything, in any layout, and on after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.accelerator.groups import Rendezvous, process_group
from megatron_soaes.accelerator.launch import launch
from megatron_soaes.decoding.interface import Completion, Prompt, Sampling
from megatron_soaes.decoding.megatron import MegatronGenerator
from megatron_soaes.evaluation.result import EvaluationResult, read_result
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.check_evaluation import evaluation_metrics
from megatron_soaes.recipe.schema import EvaluateStage, Recipe
from megatron_soaes.stages.registry import stages_of
from tests.stages.exam import ITEMS, Exam


def run_alone(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Run a stage as the only process; its metrics."""
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)):
        return stages_of(recipe)[stage].run()


def run_ranks(recipe: Recipe, stage: str, processes: int) -> Path:
    """Run a stage as real processes; its folder."""
    folder = recipe.workdir / stage
    folder.mkdir(parents=True)
    resolved = folder / "recipe.json"
    resolved.write_text(recipe.model_dump_json(), encoding="utf-8")
    arguments = [str(resolved), stage]
    code = launch("megatron_soaes.stages.worker", arguments, processes, folder / "logs")
    assert code == 0, (folder / "logs" / "rank1.log").read_text(encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def metrics(exam: Exam) -> dict[str, Any]:
    """Of the stage `compare`, run by one process."""
    return run_alone(exam.recipe(), "compare")


def results_of(exam: Exam, stage: str) -> dict[str, EvaluationResult]:
    folder = exam.recipe().workdir / stage
    return {name: read_result(folder / f"{name}.json") for name in ("import", "cpt")}


def test_metrics_are_means_that_gates_can_speak_of(exam: Exam, metrics: dict[str, Any]) -> None:
    assert metrics["cpt"]["exam"]["llamafactory.rouge1"] == pytest.approx(100)
    assert metrics["import"]["exam"]["llamafactory.rouge1"] < 80
    assert metrics["cpt"]["mini"]["choice.acc"] == 100
    assert metrics["cpt"]["held"].keys() == {"loss", "perplexity", "tokens"}
    (stage,) = (one for one in exam.recipe().stages if one.name == "compare")
    assert isinstance(stage, EvaluateStage)
    found = {
        f"{checkpoint}.{name}.{metric}"
        for checkpoint, sets in metrics.items()
        for name, figures in sets.items()
        for metric in figures
    }
    known = set(evaluation_metrics(exam.recipe().evaluation, stage))
    of_what_is_kept = {"retained", "cpt.retained"}
    facts = {"import.exam.facts.accuracy", "cpt.exam.facts.accuracy"}
    assert known - found == facts | of_what_is_kept
    assert found <= known


def test_results_say_what_was_measured_and_how(exam: Exam, metrics: dict[str, Any]) -> None:
    results = results_of(exam, "compare")

    model = results["cpt"].model
    assert (model.name, model.iteration) == ("cpt", 0)
    assert model.path == str(exam.root / "work/cpt/checkpoints/iter_0000000")
    assert model.weights_sha256 != results["import"].model.weights_sha256
    assert results["cpt"].seeds == {"recipe": 1234}
    suite = results["cpt"].suites["exam"]
    assert len(suite.answers) == ITEMS
    assert suite.settings["prompt"] == "chat template"
    assert suite.settings["max_new_tokens"] == 12
    assert suite.settings["stop_ids"] == [0, 2]  # <|endoftext|> and <|im_end|>
    assert {"llamafactory", "swift"} == suite.profiles.keys()
    assert {"jieba", "rouge"} <= suite.versions.keys()
    assert results["cpt"].suites["mini"].settings["few_shot"] == 2
    assert results["cpt"].suites["prose"].settings["window"] == 32


def test_the_model_that_wrote_the_exam_is_called_better(
    exam: Exam, metrics: dict[str, Any]
) -> None:
    folder = exam.recipe().workdir / "compare"
    found = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))

    changes = {f"{row['suite']}.{row['measure']}": row["change"] for row in found["rows"]}
    assert changes["exam.llamafactory.rouge1"] == changes["exam.swift.rouge1"] == "better"
    assert changes["mini.choice.acc"] == "better"
    assert {row["verdict"] for row in found["targets"]} == {"shown"}
    report = (folder / "report.txt").read_text(encoding="utf-8")
    assert "cpt against import" in report and "exam.rouge1 >= 5 points" in report
    assert max(map(len, report.splitlines())) <= 100


def test_two_tensor_parallel_ranks_find_the_same(exam: Exam, metrics: dict[str, Any]) -> None:
    folder = run_ranks(exam.recipe(), "together", 2)

    alone, together = results_of(exam, "compare"), results_of(exam, "together")
    for name, result in alone.items():
        other = together[name]
        assert other.model == result.model
        assert other.suites["exam"] == result.suites["exam"]
        assert other.suites["mini"] == result.suites["mini"]
        theirs = other.suites["prose"].measures["text.bits_per_byte"]
        ours = result.suites["prose"].measures["text.bits_per_byte"]
        assert theirs.scores == pytest.approx(ours.scores, rel=1e-5)
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for name, one in metrics.items():
        assert found[name]["exam"] == one["exam"]
        assert found[name]["held"] == pytest.approx(one["held"], rel=1e-5)


def test_a_killed_evaluation_asks_only_what_is_missing(
    exam: Exam, monkeypatch: pytest.MonkeyPatch, metrics: dict[str, Any]
) -> None:
    recipe = exam.recipe("compare.name=killed")
    assert stages_of(recipe)["killed"].plan().resumable
    command = [sys.executable, "-m", "tests.stages.killed", str(exam.root / "recipe.yaml")]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    asked: list[Prompt] = []
    generate = MegatronGenerator.generate

    def counted(self: Any, prompts: list[Prompt], sampling: Sampling) -> list[Completion]:
        asked.extend(prompts)
        return generate(self, prompts, sampling)

    monkeypatch.setattr(MegatronGenerator, "generate", counted)
    assert run_alone(recipe, "killed") == metrics
    assert len(asked) == ITEMS  # those of the second checkpoint


def test_other_settings_are_another_stage(exam: Exam) -> None:
    plan = stages_of(exam.recipe())["compare"].plan()

    for change in ("evaluation.max_new_tokens=9", "evaluation.prompt=plain", "compare.dtype=bf16"):
        assert stages_of(exam.recipe(change))["compare"].plan().config != plan.config
    same = exam.recipe("evaluation.batch_size=3", "compare.layout={data_parallel: 2}")
    assert stages_of(same)["compare"].plan().config == plan.config
    assert {"questions/exam", "few_shot/mini", "texts/prose"} <= plan.inputs.keys()
    assert set(plan.outputs) == {
        "import.json",
        "cpt.json",
        "comparison.json",
        "report.txt",
        "summary.txt",
    }


def test_one_checkpoint_is_a_table_of_its_own(exam: Exam) -> None:
    recipe = exam.recipe(
        "compare.name=single", "single.checkpoints=[cpt]", "perplexity=[]", "texts={}"
    )
    check(recipe)
    found = run_alone(recipe, "single")

    assert found["cpt"].keys() == {"exam", "mini"}
    folder = recipe.workdir / "single"
    assert "cpt, iteration 0" in (folder / "report.txt").read_text(encoding="utf-8")
    assert not (folder / "comparison.json").exists()
    shutil.rmtree(folder)
