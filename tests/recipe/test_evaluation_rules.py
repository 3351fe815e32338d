"""Rules of evaluations, on the small recipe: tasks, layouts, targets and gates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_soaes.accelerator.machine import read_machine
from megatron_soaes.evaluation.scoring import score_bits_per_byte, score_choices, score_questions
from megatron_soaes.evaluation.tasks import read_choices, read_questions, read_texts
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.check_arithmetic import check_arithmetic
from megatron_soaes.recipe.check_evaluation import task_metrics
from megatron_soaes.recipe.check_node import check_node
from megatron_soaes.recipe.evaluation_settings import Evaluation
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.problems import Problem

TASKS = ("questions={exam: exam.jsonl}", "choices={mini: mini.jsonl}", "texts={prose: p.jsonl}")


def problems_of(path: Path, *overrides: str) -> list[Problem]:
    recipe = load_recipe(path, [f"evaluation.{task}" for task in TASKS] + list(overrides))
    return check_arithmetic(recipe, check(load_recipe(path)))


@pytest.mark.parametrize(
    ("overrides", "path", "fix"),
    [
        (["evaluation.texts={exam: p.jsonl}"], "evaluation", "Rename one"),
        (["evaluation.choices={domain: p.jsonl}"], "evaluation", "Rename one"),
        (
            ["evaluation.few_shot={mimi: {examples: e.jsonl, count: 2}}"],
            "evaluation.few_shot",
            "'mini'",
        ),
        (["evaluation.profiles=[swift, swift]"], "evaluation.profiles", "Remove the others"),
        (["evaluation.targets=[rouge1 is high]"], "evaluation.targets", "Write it like"),
        (["evaluation.targets=[exam.rogue1 >= 1.08]"], "evaluation.targets", "swift.rouge1"),
        (
            ["evaluation.targets=[rouge1 >= 1.08]", "compare.checkpoints=[cpt]"],
            "evaluation.targets",
            "Compare with a base",
        ),
        (["evaluation.margin='2'"], "evaluation.margin", "Write it like that"),
        (["evaluation.max_new_tokens=256"], "evaluation.max_new_tokens", "Lower it"),
        (
            ["compare.layout={context_parallel: 2}"],
            "stages.compare.layout.context_parallel",
            "any checkpoint loads in any layout",
        ),
        (
            ["compare.layout={pipeline_parallel: 2, virtual_pipeline: 2}"],
            "stages.compare.layout.virtual_pipeline",
            "without virtual_pipeline",
        ),
        (["compare.gates=[cpt.exam.rouge1 >= 40]"], "stages.compare.gates", "swift.rouge1"),
    ],
    ids=str,
)
def test_each_rule_names_its_field_and_the_remedy(
    recipe_file: Path, overrides: list[str], path: str, fix: str
) -> None:
    if not any(one.startswith("evaluation.max_new") for one in overrides):
        overrides = [*overrides, "evaluation.max_new_tokens=64"]
    (problem,) = problems_of(recipe_file, *overrides)

    assert problem.path == path
    assert fix in problem.fix


@pytest.mark.parametrize(
    "overrides",
    [
        ["compare.layout={tensor_parallel: 2, sequence_parallel: true}"],
        ["evaluation.targets=[rouge1 >= 1.08, 'exam[law].swift.bleu4 >= 2 points', acc > 1]"],
        ["compare.gates=[cpt.exam.swift.rouge1 >= 40, cpt.domain.loss <= 3]"],
        [
            "cpt.validation.best=domain",
            "compare.checkpoints=[import, cpt@best]",
            "compare.gates=[cpt@best.mini.choice.acc >= 40]",
        ],
        ["evaluation.perplexity=[]"],
        ["evaluation.perplexity=[]", "evaluation.texts={}", "evaluation.sequence_length=4096"],
    ],
    ids=str,
)
def test_what_is_allowed_is_not_refused(recipe_file: Path, overrides: list[str]) -> None:
    assert problems_of(recipe_file, *overrides, "evaluation.max_new_tokens=64") == []


def test_a_stage_named_like_another_file_is_refused(recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("name: cpt", "name: comparison"))
    overrides = ["compare.checkpoints=[import, comparison]"]
    recipe = load_recipe(recipe_file, overrides)
    (problem,) = check_arithmetic(recipe, {})
    assert problem.path == "stages.compare.checkpoints"


def test_task_files_start_at_the_recipe_and_are_missed_before_the_run(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, [f"evaluation.{task}" for task in TASKS])
    assert recipe.evaluation.questions["exam"] == recipe_file.parent / "exam.jsonl"

    (recipe_file.parent / "mini.jsonl").write_text("")
    found = check_node(recipe, read_machine())
    assert [problem.path for problem in found] == [
        "evaluation.questions.exam",
        "evaluation.texts.prose",
    ]


def test_the_measures_that_rules_know_are_those_that_are_made(tmp_path: Path) -> None:
    lines = {
        "exam": {"question": "q", "answer": "国资", "facts": ["国资"]},
        "mini": {"question": "q", "choices": ["a", "b"], "answer": 0},
        "prose": {"text": "t"},
    }
    paths = {name: tmp_path / f"{name}.jsonl" for name in lines}
    for name, line in lines.items():
        paths[name].write_text(json.dumps(line), encoding="utf-8")
    suites = {
        "exam": score_questions(read_questions(paths["exam"]), ["国资"], {}),
        "mini": score_choices(read_choices(paths["mini"]), [[-1.0, -2.0]], {}),
        "prose": score_bits_per_byte(read_texts(paths["prose"]), [-1.0], {}),
    }
    made = {f"{name}.{measure}" for name, suite in suites.items() for measure in suite.measures}
    evaluation = Evaluation(
        questions={"exam": paths["exam"]},
        choices={"mini": paths["mini"]},
        texts={"prose": paths["prose"]},
    )
    assert set(task_metrics(evaluation)) == made
