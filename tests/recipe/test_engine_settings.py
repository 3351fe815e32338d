"""Settings that only Transformer Engine has: where they are refused, and what they become."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_soaes.models.build import fp8_settings
from megatron_soaes.recipe.check_node import check_node
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.training_settings import FP8, Optimizer, PrecisionAware
from megatron_soaes.training.engine import state_settings
from tests.recipe.recipe_files import problems_of
from tests.recipe.test_node import CPU, H100, without_te

APEX = replace(H100, apex="nvidia")
AWARE = "cpt.optimizer.precision_aware={first_moment: bf16}"


@pytest.mark.parametrize(
    ("override", "field"),
    [
        (AWARE, "optimizer.precision_aware"),
        ("cpt.kernels.swiglu=true", "kernels.swiglu"),
        ("cpt.kernels.rope=true", "kernels.rope"),
        ("cpt.kernels.gradient_accumulation=true", "kernels.gradient_accumulation"),
        ("cpt.kernels.cross_entropy=true", "kernels.cross_entropy"),
        ("cpt.kernels.mlp_graphs=true", "kernels.mlp_graphs"),
        ("cpt.overlap.tensor_parallel=true", "overlap.tensor_parallel"),
    ],
)
def test_they_are_refused_where_they_would_not_happen(
    recipe_72b_file: Path, override: str, field: str
) -> None:
    recipe = load_recipe(recipe_72b_file, ["cluster=null", "cpt.fp8=null", override])
    for machine in (CPU, without_te(replace(H100, gpu_count=64))):
        (problem,) = check_node(recipe, machine)
        assert problem.path == f"stages.cpt.{field}"
        assert "without a GPU and the package transformer-engine" in problem.rule
    assert check_node(recipe, replace(APEX, gpu_count=64)) == []


def test_a_node_with_an_older_transformer_engine_is_told(recipe_72b_file: Path) -> None:
    recipe = load_recipe(recipe_72b_file, ["cluster=null", "cpt.fp8=null", AWARE])
    old = replace(APEX, gpu_count=64, versions={**APEX.versions, "transformer-engine": "2.0.0"})
    (problem,) = check_node(recipe, old)
    assert problem.rule == "what Transformer Engine 2.0.0 has"


def test_gradients_are_added_up_within_products_only_with_apex(recipe_72b_file: Path) -> None:
    wanted = "cpt.kernels.gradient_accumulation=true"
    (problem,) = check_node(load_recipe(recipe_72b_file, [wanted]), H100)
    assert "NVIDIA's apex" in problem.rule


@pytest.mark.parametrize(
    ("overrides", "field", "said"),
    [
        ([AWARE, "cluster.transformer_engine=2.0.0", "cpt.fp8=null"],
         "stages.cpt.optimizer.precision_aware", "Install 2.1.0"),
        (["cpt.overlap.tensor_parallel=true", "cluster.transformer_engine=2.6.0", "cpt.fp8=null"],
         "stages.cpt.overlap.tensor_parallel", "Install 2.7.0"),
        ([AWARE, "cluster.transformer_engine=null", "cpt.fp8=null"],
         "cluster.transformer_engine", "because of stages.cpt.optimizer.precision_aware"),
        ([AWARE, "cpt.precision={dtype: fp32}"],
         "stages.cpt.optimizer.precision_aware", "their own main weights"),
        (["cpt.fp8.margin=2"], "stages.cpt.precision.fp8.margin", "keeps no history"),
        (["cpt.fp8.amax_history=16"], "stages.cpt.precision.fp8.amax_history", "keeps no history"),
        (["cpt.fp8.attention=dot_product"], "stages.cpt.precision.fp8.attention", "delayed recipe"),
        (["cpt.fp8={recipe: mxfp8, param_gather: true}", "cluster.gpu=b200-180g"],
         "stages.cpt.precision.fp8.param_gather", "two forms"),
        (["cpt.overlap.tensor_parallel=true", "cpt.layout.sequence_parallel=false"],
         "stages.cpt.overlap.tensor_parallel", "nothing is gathered"),
        (["cpt.overlap.tensor_parallel=true", "cpt.layout.context_parallel=2"],
         "stages.cpt.overlap.tensor_parallel", "buffers have one size"),
        (["cpt.overlap.tensor_parallel=true", "cpt.fp8.recipe=blockwise"],
         "stages.cpt.overlap.tensor_parallel", "do not carry"),
        (["cpt.kernels.mlp_graphs=true", "cpt.layout.context_parallel=2"],
         "stages.cpt.kernels.mlp_graphs", "a graph has one size"),
        (["cpt.kernels.mlp_graphs=true", "cpt.overlap={grad_reduce: true, param_gather: true}"],
         "stages.cpt.kernels.mlp_graphs", "wait for weights"),
        (["cpt.kernels.mlp_graphs=true", "cpt.recompute={granularity: full}"],
         "stages.cpt.kernels.mlp_graphs", "lies within the graph"),
        (["cpt.kernels.mlp_graphs=true",
          "cpt.recompute={granularity: selective, modules: [core_attn, mlp]}"],
         "stages.cpt.kernels.mlp_graphs", "lies within the graph"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_ask_for(
    recipe_72b_file: Path, overrides: list[str], field: str, said: str
) -> None:
    found = problems_of(recipe_72b_file, *overrides)
    assert any(one.path == field and said in str(one) for one in found), found


def test_the_delayed_recipe_takes_its_settings(recipe_72b_file: Path) -> None:
    whole = "{recipe: delayed, margin: 1, amax_history: 16, attention: multi_head}"
    assert problems_of(recipe_72b_file, f"cpt.fp8={whole}") == []


def test_fp8_settings_have_megatron_cores_names() -> None:
    assert fp8_settings(None) == {}
    found = fp8_settings(
        FP8(recipe="delayed", attention="multi_head", amax_history=16, margin=1, param_gather=True)
    )
    assert found.keys() <= {field.name for field in fields(TransformerConfig)}
    assert found == {
        "fp8": "hybrid",
        "fp8_recipe": "delayed",
        "first_last_layers_bf16": False,
        "fp8_param": True,
        "fp8_dot_product_attention": True,
        "fp8_multi_head_attention": True,
        "fp8_amax_history_len": 16,
        "fp8_amax_compute_algo": "max",
        "fp8_margin": 1,
    }


def test_optimizer_state_has_megatron_cores_names() -> None:
    assert state_settings(Optimizer(), None) == {}
    aware = PrecisionAware(main_weights="fp16", main_gradients="bf16", second_moment="fp8")
    optimizer = Optimizer(precision_aware=aware)
    found = state_settings(optimizer, FP8(recipe="blockwise", param_gather=True))
    assert found.keys() <= {field.name for field in fields(OptimizerConfig)}
    assert found == {
        "fp8_recipe": "blockwise",
        "use_precision_aware_optimizer": True,
        "main_params_dtype": torch.float16,
        "main_grads_dtype": torch.bfloat16,
        "exp_avg_dtype": torch.float32,
        "exp_avg_sq_dtype": torch.uint8,
        "store_param_remainders": False,
    }
    # Of bf16 weights Transformer Engine keeps the main weights, whatever the products are in.
    assert "fp8_recipe" not in state_settings(optimizer, FP8(recipe="blockwise"))


def test_main_weights_of_fp8_weights_are_kept_whole() -> None:
    """What updates weights in FP8 cannot put them together from a bf16 weight and its rest."""
    optimizer = Optimizer(precision_aware=PrecisionAware())
    for fp8, rest_only in ((None, True), (FP8(recipe="delayed", param_gather=True), False)):
        assert state_settings(optimizer, fp8)["store_param_remainders"] is rest_only
