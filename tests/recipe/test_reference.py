"""The written reference and the resolved recipe."""

from __future__ import annotations

from pathlib import Path

from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.reference import recipe_reference, show
from megatron_soaes.recipe.schema import CPTStage
from megatron_soaes.recipe.training_settings import FP8, Optimizer

from .recipe_files import write_recipe

REFERENCE = Path(__file__).parents[2] / "docs/recipe-reference.md"


def test_the_reference_in_docs_is_current() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == recipe_reference(), (
        "run: python -m megatron_soaes.recipe.reference > docs/recipe-reference.md"
    )


def test_the_reference_tells_every_field_with_its_meaning() -> None:
    text = recipe_reference()

    for section in (Optimizer, FP8, CPTStage):
        for name, field in section.model_fields.items():
            assert f"| `{name}` |" in text
            assert (field.description or "") in text
    assert all(f"`{kind}`" in text for kind in GPUS)
    assert "| `lr` | number, above 0 | `1.0e-05` | Peak learning rate. |" in text


def test_a_shown_recipe_reads_back_the_same_anywhere(tmp_path: Path, recipe_file: Path) -> None:
    overrides = ["cpt.fp8.recipe=delayed", "cpt.profile={steps: [2, 3]}", "cluster.gpu=h100-80g"]
    for given in ([], overrides):
        recipe = load_recipe(recipe_file, given)
        text = show(recipe)
        elsewhere = write_recipe(tmp_path / "elsewhere", text)

        assert "weight_decay: 0.1" in text  # defaults are written out
        assert load_recipe(elsewhere) == recipe
        assert show(load_recipe(elsewhere)) == text


def test_defaults_written_out_break_no_rule(tmp_path: Path, recipe_file: Path) -> None:
    shown = write_recipe(tmp_path / "shown", show(load_recipe(recipe_file)))

    assert check(load_recipe(shown)).keys() == {"target", "draft"}
