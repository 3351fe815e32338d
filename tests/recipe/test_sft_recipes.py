"""Recipes with a curriculum: what fits together, what starts where, and the control."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.ablation import with_single_stage
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.graph import datasets_of, nodes, start_of, steps_of
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.problems import RecipeErrors
from megatron_soaes.recipe.schema import EvaluateStage, Recipe, SingleStage

from .recipe_files import RECIPE, write_recipe

DATA = """\
    general_chat: {conversations: [chat/general.jsonl], holdout: 0.1}
    expert_chat: {conversations: [chat/expert.jsonl], holdout: 0.1, chat: {source_key: topic}}
"""
BLENDS = """\
    chat: {weights: {general_chat: 1.0}}
    expert:
      weights: {expert_chat: 1.0}
      replay: {weights: {general_chat: 2.0, general: 1.0}, share: 0.25}
"""
STAGES = """\
  - name: sft1
    kind: sft
    blend: chat
    epochs: 2
    sequence_length: 128
    global_batch_size: 8
    validation: {sets: [general_chat, expert_chat], best: general_chat}
  - name: sft2
    kind: sft
    blend: expert
    steps: 12
    sequence_length: 128
    global_batch_size: 8
    validation: {sets: [expert_chat]}
"""
CONTROL = """\
  - name: single
    kind: sft_single_stage
    of: [sft1, sft2]
    sequence_length: 128
    global_batch_size: 8
"""
COMPARISON = """\
  - name: exam
    kind: evaluate
    checkpoints: [import, sft1@best, sft2]
"""


def write(folder: Path, *more: str) -> Path:
    text = RECIPE.replace("  blends:\n", DATA + "  blends:\n").replace(
        "stages:\n", BLENDS + "stages:\n"
    )
    return write_recipe(folder, text.replace("evaluation:", STAGES + "".join(more) + "evaluation:"))


@pytest.fixture
def curriculum(tmp_path: Path) -> Path:
    return write(tmp_path, CONTROL, COMPARISON)


def by_name(recipe: Recipe, name: str) -> SingleStage:
    (found,) = (stage for stage in recipe.stages if stage.name == name)
    return found  # type: ignore[return-value]


def test_a_curriculum_is_a_sound_recipe(curriculum: Path) -> None:
    recipe = load_recipe(curriculum)
    check(recipe)
    assert {"preprocess-general_chat", "preprocess-expert_chat"} <= set(nodes(recipe))


def test_each_stage_starts_from_the_one_before_and_the_control_from_the_first(
    curriculum: Path,
) -> None:
    recipe = load_recipe(curriculum)
    starts = {name: start_of(recipe, by_name(recipe, name)) for name in ("sft1", "sft2", "single")}
    assert starts == {"sft1": "cpt", "sft2": "sft1", "single": "cpt"}


def test_the_control_takes_the_data_and_the_steps_of_its_parts(curriculum: Path) -> None:
    recipe = load_recipe(curriculum)
    single = by_name(recipe, "single")
    assert datasets_of(recipe, single) == ["general_chat", "expert_chat", "general"]
    assert steps_of(recipe, single) is None  # sft1 goes by passes over data not packed yet
    fixed = load_recipe(curriculum, ["sft1.epochs=null", "sft1.steps=5"])
    assert steps_of(fixed, by_name(fixed, "single")) == 17


def test_the_best_checkpoint_of_a_stage_can_be_a_start(curriculum: Path) -> None:
    recipe = load_recipe(curriculum, ["sft2.after=sft1@best"])
    check(recipe)
    assert start_of(recipe, by_name(recipe, "sft2")) == "sft1@best"


@pytest.mark.parametrize(
    ("overrides", "field", "fix"),
    [
        (["cpt.blend=chat"], "stages.cpt.blend", "kind sft"),
        (["sft1.blend=mix"], "stages.sft1.blend", "kind cpt"),
        (["sft2.epochs=1"], "stages.sft2", "`steps` or `epochs`"),
        (["sft1.epochs=null"], "stages.sft1", "`steps` or `epochs`"),
        (["sft2.after=sft1@best", "sft1.best=null"], "stages.sft2.after", "validation.best"),
        (["sft2.after=import@best"], "stages.sft2.after", "validation.best"),
        (["sft1.best=domain"], "stages.sft1.validation.best", "Known: expert_chat, general_chat"),
        (["single.of=[sft1, cpt]"], "stages.single.of", "Known: sft1, sft2"),
        (["single.of=[sft1, sft1]"], "stages.single.of", "each stage once"),
        (["single.sequence_length=64"], "stages.single.sequence_length", "the very same samples"),
        (["single.global_batch_size=4"], "stages.single.global_batch_size", "very same samples"),
        (["general_chat.key=body"], "data.datasets.general_chat.key", "only `text`"),
        (["domain.train_on=last"], "data.datasets.domain.chat", "only `conversations`"),
        (
            ["sft1.blend=expert", "data.blends.expert.weights={domain: 1.0, expert_chat: 1.0}"],
            "stages.sft1.epochs",
            "move it to the blend's replay",
        ),
        (
            ["sft1.blend=expert", "data.blends.expert.replay.share=1.0"],
            "stages.sft1.epochs",
            "Lower the share",
        ),
    ],
)
def test_each_rule_names_its_field_and_the_remedy(
    curriculum: Path, overrides: list[str], field: str, fix: str
) -> None:
    with pytest.raises(RecipeErrors) as caught:
        check(load_recipe(curriculum, overrides))
    found = {problem.path: problem for problem in caught.value.problems}
    assert field in found, found
    assert fix in f"{found[field].fix} {found[field].rule}"


def test_the_flag_adds_the_control_and_measures_it(tmp_path: Path) -> None:
    recipe = with_single_stage(load_recipe(write(tmp_path, COMPARISON)))
    check(recipe)
    names = [stage.name for stage in recipe.stages]
    assert names[names.index("sft2") + 1] == "sft2-single"
    control = by_name(recipe, "sft2-single")
    assert control.of == ["sft1", "sft2"]
    assert start_of(recipe, control) == "cpt"
    measured = [stage.checkpoints for stage in recipe.stages if isinstance(stage, EvaluateStage)]
    assert measured[-1] == ["import", "sft1@best", "sft2", "sft2-single"]


def test_the_flag_is_refused_without_a_curriculum(recipe_file: Path) -> None:
    with pytest.raises(UserError, match="no two sft stages"):
        with_single_stage(load_recipe(recipe_file))
