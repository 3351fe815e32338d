"""The runs of a rehearsal: at most 8 processes each, and every pair of dimensions in one."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.graph import layout_of
from megatron_soaes.rehearsal.layouts import DIMENSIONS, used_dimensions
from megatron_soaes.rehearsal.material import Material
from megatron_soaes.rehearsal.shrink import shrink
from megatron_soaes.rehearsal.topologies import Rehearsed, runs_of
from tests.rehearsal.small_recipes import large

FOUR_WAYS = "cpt.layout={tensor_parallel: 4, pipeline_parallel: 2, context_parallel: 2, "
FOUR_WAYS += "data_parallel: 2}"


def runs(folder: Path, *overrides: str) -> list[Rehearsed]:
    recipe = large(folder, *overrides)
    shapes = check(recipe)
    small, _ = shrink(recipe, shapes)
    return runs_of(Material(recipe, shapes, folder / "material").lay_out(small), folder)


def test_a_recipe_whose_layouts_fit_is_one_run(tmp_path: Path) -> None:
    (only,) = runs(tmp_path)
    assert only.stages == ("cpt", "sft", "evaluation", "hf")
    assert only.recipe.workdir == tmp_path / "run-1"


def test_four_dimensions_are_rehearsed_three_at_a_time(tmp_path: Path) -> None:
    first, *others = runs(tmp_path, FOUR_WAYS)
    assert first.stages == ("cpt", "sft", "evaluation", "hf")
    assert [one.stages for one in others] == [("cpt",), ("cpt",)]
    layouts = [layout_of(one.recipe, one.recipe.stages[0]) for one in (first, *others)]
    assert all(layout.processes == 8 for layout in layouts)
    for pair in combinations(DIMENSIONS, 2):
        assert any(set(pair) <= set(used_dimensions(layout)) for layout in layouts)


def test_later_runs_make_only_what_their_stages_read_on_one_process(tmp_path: Path) -> None:
    layout = FOUR_WAYS.replace("cpt.", "sft.")
    _, second, _ = runs(tmp_path, layout, "sft.global_batch_size=64")
    names = [one.name for one in second.recipe.stages]
    assert names == ["cpt", "sft"], "the evaluation and the export are not read by sft"
    assert second.stages == ("sft",)
    assert layout_of(second.recipe, second.recipe.stages[0]).processes == 1
