"""What the models ask of a recipe: shapes, sizes of an FP8 layout, and files that can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.check_arithmetic import check_arithmetic
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import CPTStage
from megatron_soaes.recipe.shapes import shape_from_config
from megatron_soaes.recipe.training_settings import Layout

from .recipe_files import (
    QWEN2_5_72B,
    RECIPE,
    RECIPE_72B,
    TARGET,
    TARGET_LAYOUT,
    problems_of,
    write_recipe,
)


def test_shape_rules_on_odd_models(tmp_path: Path) -> None:
    odd = TARGET | {"num_attention_heads": 12, "head_dim": 8, "num_key_value_heads": 3}
    path = write_recipe(tmp_path, target=odd)
    (kv_heads,) = problems_of(path)
    assert kv_heads.rule == "a divisor or a multiple of the KV heads, 3"
    assert kv_heads.fix == "Use 1 or 3."

    path = write_recipe(tmp_path, target=TARGET | {"intermediate_size": 127})
    (ffn,) = problems_of(path)
    assert ffn.rule == "a divisor of the FFN width, 127"

    path = write_recipe(tmp_path, target=TARGET | {"num_key_value_heads": 3})
    assert "models.target.source" in {problem.path for problem in problems_of(path)}


def test_an_unreadable_model_is_one_problem_and_the_rest_is_still_checked(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    (tmp_path / "models/target/config.json").unlink()
    source, schedule = problems_of(path, "cpt.warmup_steps=30")

    assert (source.path, schedule.path) == (
        "models.target.source",
        "stages.cpt.schedule.warmup_steps",
    )
    assert "models/target/config.json" in source.value

    (config,) = problems_of(path, "models.target.config=elsewhere.json")
    assert config.path == "models.target.config"


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 0}']
)
def test_a_broken_config_is_a_problem_not_a_crash(tmp_path: Path, content: str) -> None:
    path = write_recipe(tmp_path)
    (tmp_path / "models/target/config.json").write_text(content)

    (problem,) = problems_of(path)
    assert problem.path == "models.target.source"


def test_a_72b_recipe_in_fp8_is_checked_where_neither_weights_nor_gpus_are(
    recipe_72b_file: Path,
) -> None:
    shape = check(load_recipe(recipe_72b_file))["target"]

    assert shape.parameters == 72_706_203_648  # what Qwen2.5-72B holds


def test_fp8_sides_depend_on_the_layout(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, RECIPE_72B, QWEN2_5_72B)
    problems = problems_of(path, "cpt.fp8.recipe=mxfp8", "cluster.gpu=b200-180g")

    assert [problem.value for problem in problems] == ["the FFN width of a process: 29568 / 8"]
    assert problems_of(path, "cpt.fp8.recipe=mxfp8", "cluster.gpu=b200-180g",
                       f"{TARGET_LAYOUT}.tensor_parallel=4") == []  # fmt: skip


@settings(deadline=None)
@given(
    st.builds(
        Layout,
        tensor_parallel=st.sampled_from([1, 2, 3, 4, 8]),
        pipeline_parallel=st.sampled_from([1, 2, 3, 4]),
        virtual_pipeline=st.sampled_from([1, 2]),
        context_parallel=st.sampled_from([1, 2, 3]),
        data_parallel=st.sampled_from([1, 2, 3]),
        sequence_parallel=st.booleans(),
    ),
    st.sampled_from([8, 12, 48]),
    st.sampled_from([96, 128, 130]),
)
def test_an_accepted_layout_cuts_model_and_batch_without_remainder(
    base: tuple[Path, CPTStage], layout: Layout, batch: int, length: int
) -> None:
    path, stage = base
    recipe = load_recipe(path)
    stage = stage.model_copy(
        update={"layout": layout, "global_batch_size": batch, "sequence_length": length}
    )
    shape = shape_from_config(TARGET, "here")
    recipe = recipe.model_copy(update={"stages": [stage]})
    tensor, context = layout.tensor_parallel, layout.context_parallel
    micro_batches = batch / layout.data_parallel
    fits = (
        shape.heads % tensor == 0
        and 128 % tensor == 0
        and shape.layers % (layout.pipeline_parallel * layout.virtual_pipeline) == 0
        and (layout.virtual_pipeline == 1 or layout.pipeline_parallel > 1)
        and (layout.virtual_pipeline == 1 or micro_batches % layout.pipeline_parallel == 0)
        and micro_batches.is_integer()
        and (context == 1 or length % (2 * context) == 0)
        and (not layout.sequence_parallel or (tensor > 1 and length % (context * tensor) == 0))
    )
    assert (check_arithmetic(recipe, {"target": shape}) == []) == fits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CPTStage]:
    text = RECIPE.replace("evaluation: {perplexity: [domain, unseen], sequence_length: 128}", "")
    path = write_recipe(tmp_path_factory.mktemp("base"), text)
    stage = load_recipe(path).stages[0]
    assert isinstance(stage, CPTStage)
    return path, stage
