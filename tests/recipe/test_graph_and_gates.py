"""Where each stage starts, the order of a run, and gates."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.conditions import OPERATORS
from megatron_soaes.recipe.gates import Gate
from megatron_soaes.recipe.graph import layout_of, nodes, start_of
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.training_settings import Layout

from .recipe_files import RECIPE, write_recipe


def test_a_stage_starts_from_the_last_training_stage_of_its_model(tmp_path: Path) -> None:
    again = RECIPE[RECIPE.index("  - name: cpt") : RECIPE.index("  - name: draft-cpt")]
    text = RECIPE.replace("evaluation:", again.replace("name: cpt", "name: more") + "evaluation:")
    recipe = load_recipe(write_recipe(tmp_path, text))

    starts = {
        stage.name: start_of(recipe, stage) for stage in recipe.stages if stage.name != "compare"
    }
    assert starts == {"cpt": "import", "draft-cpt": "import", "to-hf": "cpt", "more": "cpt"}


def test_after_names_another_start(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["to-hf.after=import"])

    assert start_of(recipe, recipe.stages[-1]) == "import"


def test_a_stage_has_its_models_layout_unless_it_has_its_own(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["to-hf.layout={pipeline_parallel: 4}"])

    assert layout_of(recipe, recipe.stages[0]) == Layout(tensor_parallel=2, pipeline_parallel=2)
    assert layout_of(recipe, recipe.stages[-1]) == Layout(pipeline_parallel=4)
    assert layout_of(recipe, recipe.stages[1]) == Layout()


def test_a_run_preprocesses_imports_and_goes_through_the_stages(recipe_file: Path) -> None:
    assert nodes(load_recipe(recipe_file)) == [
        "preprocess-domain",
        "preprocess-unseen",
        "import-target",
        "import-draft",
        "cpt",
        "draft-cpt",
        "compare",
        "to-hf",
    ]


@settings(deadline=None)
@given(
    st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    st.sampled_from(sorted(OPERATORS)),
    st.integers(-1000, 1000),
    st.sampled_from(["", " ", "  "]),
)
def test_a_gate_reads_what_it_prints(metric: str, sign: str, bound: int, space: str) -> None:
    gate = Gate.parse(f"{space}{metric} {sign}{space}{bound}")

    assert gate == Gate(metric, sign, bound) == Gate.parse(str(gate))


@pytest.mark.parametrize(
    "text",
    [
        "loss",
        "loss <= ",
        "loss == 2",
        "2 < loss",
        "loss < nan",
        "loss < inf",
        "loss < 2 3",
        "loss < 2 points",
        "exam[A].loss < 2",
    ],
)
def test_what_is_no_gate_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="metric operator number"):
        Gate.parse(text)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("x <= 2.5", 2.5, True),
        ("x < 2.5", 2.5, False),
        ("x >= 2.5", 2.5, True),
        ("x > 2.5", 2.5, False),
        ("x > 2.5", 2.6, True),
        ("x <= 1e-5", 2e-5, False),
        ("x <= 2.5", math.nan, False),
        ("x >= 2.5", math.nan, False),
    ],
)
def test_a_gate_holds_or_not(text: str, value: float, holds: bool) -> None:
    assert Gate.parse(text).holds({"x": value, "y": 0.0}) is holds


def test_a_gate_on_a_metric_that_was_not_measured_does_not_pass_silently() -> None:
    with pytest.raises(UserError, match=r"'validation.domain.loss'"):
        Gate.parse("validation.domian.loss < 2").holds({"validation.domain.loss": 1.0})
