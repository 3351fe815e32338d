"""Overrides: exact paths, shorthands, and what is refused with the candidates."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_soaes import yaml_text
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.overrides import apply_overrides
from megatron_soaes.recipe.schema import CPTStage, Recipe

from .recipe_files import RECIPE, write_recipe


def cpt_of(recipe: Recipe) -> CPTStage:
    stage = recipe.stages[0]
    assert isinstance(stage, CPTStage)
    return stage


@pytest.mark.parametrize(
    "path", ["stages.cpt.optimizer.lr", "cpt.optimizer.lr", "cpt.lr", "stages.cpt.lr"]
)
def test_a_stages_field_by_full_path_by_stage_name_and_by_leaf(
    recipe_file: Path, path: str
) -> None:
    recipe = load_recipe(recipe_file, [f"{path}=2e-5"])

    assert cpt_of(recipe).optimizer.lr == 2e-5
    assert cpt_of(recipe).optimizer.min_lr == 1e-4  # its neighbours stay


def test_sections_lists_and_null_as_values(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "models.target.layout.tensor_parallel=4",
            "cpt.fp8={recipe: delayed}",
            "cpt.gates=[a.b < 1, c > 2]",
            "models.draft=null",
            "cluster.gpu=h100-80g",
            "data.datasets.domain.holdout=0.25",
        ],
    )

    assert recipe.models.target.layout.tensor_parallel == 4
    assert recipe.models.target.layout.pipeline_parallel == 2
    fp8 = cpt_of(recipe).precision.fp8
    assert fp8 is not None and fp8.recipe == "delayed"
    assert cpt_of(recipe).gates == ["a.b < 1", "c > 2"]
    assert recipe.models.draft is None
    assert recipe.cluster is not None and recipe.cluster.gpus == 8
    assert recipe.data.datasets["domain"].holdout == 0.25


def test_the_last_override_wins(recipe_file: Path) -> None:
    assert cpt_of(load_recipe(recipe_file, ["cpt.steps=5", "cpt.steps=6"])).steps == 6


def test_an_exact_path_in_a_stage_beats_a_deeper_one(recipe_file: Path) -> None:
    assert cpt_of(load_recipe(recipe_file, ["cpt.steps=7"])).steps == 7  # not cpt.profile.steps


def test_a_stage_may_be_called_like_a_section(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, RECIPE.replace("name: to-hf", "name: export"))
    recipe = load_recipe(path, ["export.shard_bytes=9", "export.gates=[x < 1]"])

    assert recipe.export.shard_bytes == 9
    assert recipe.stages[-1].gates == ["x < 1"]
    with pytest.raises(UserError, match=r"candidates: stages.export, export\."):
        load_recipe(path, ["export={}"])


def test_sections_shared_by_an_anchor_are_set_apart(tmp_path: Path) -> None:
    text = RECIPE.replace("optimizer: {", "optimizer: &shared {").replace(
        "    steps: 10", "    optimizer: *shared\n    steps: 10"
    )
    recipe = load_recipe(write_recipe(tmp_path, text), ["cpt.lr=5e-4"])

    assert cpt_of(recipe).optimizer.lr == 5e-4
    assert isinstance(recipe.stages[1], CPTStage) and recipe.stages[1].optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cpt.every=5", "stages.cpt.validation.every, stages.cpt.checkpoints.every"),
        ("sequence_length=5", "3 fields called sequence_length"),
        ("cpt.warmup=5", "Did you mean stages.cpt.schedule.warmup_steps"),
        ("cpt.optimizer.lrr=5", r"Did you mean stages.cpt.optimizer.lr\?"),
        ("ctp.lr=5", "Did you mean .*stages.cpt.optimizer.lr"),
        ("data.datasets.domian.holdout=0.1", "Did you mean data.datasets.domain.holdout"),
        ("compare.lr=1", "no field compare.lr"),
        ("zzz=1", "no field zzz"),
        ("cpt.steps", "no '='"),
        ("cpt.gates=[a", "override 'cpt.gates=.a':1"),
        ("cpt.layout={a: 1, a: 2}", "the key 'a' for the second time"),
    ],
)
def test_a_path_that_fits_no_field_or_several_is_refused(
    recipe_file: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe_file, [override])


def test_a_value_in_place_of_a_section_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, RECIPE.replace("schedule: {warmup_steps: 2}", "schedule: 2"))
    with pytest.raises(UserError, match=r"2 in stages.cpt.schedule"):
        load_recipe(path, ["cpt.warmup_steps=1"])


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if value and isinstance(value, list) and isinstance(value[0], dict):
        return [leaf for item in value for leaf in leaves(item, (*path, item["name"]))]
    return [path]


@settings(deadline=None)
@given(
    st.sampled_from(leaves(yaml_text.parse(RECIPE, "here"))),
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text("a1e-5", min_size=1),
)
def test_overriding_any_leaf_is_editing_the_file(path: tuple[str, ...], value: object) -> None:
    edited = yaml_text.parse(RECIPE, "here")
    place = edited
    for step in path[:-1]:
        if isinstance(place, list):
            place = next(item for item in place if item["name"] == step)
        else:
            place = place[step]
    place[path[-1]] = value
    before = yaml_text.parse(RECIPE, "here")

    override = f"{'.'.join(path)}={yaml_text.dump_flow(value)}"
    assert apply_overrides(before, [override]) == edited
    assert before == yaml_text.parse(RECIPE, "here")


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-8, 1e-2))
def test_every_spelling_of_a_small_number_is_that_number(lr: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_recipe(Path(folder))
        for spelling in (repr(lr), f"{lr:.17e}", yaml.safe_dump(lr).splitlines()[0]):
            assert cpt_of(load_recipe(path, [f"cpt.lr={spelling}"])).optimizer.lr == lr
