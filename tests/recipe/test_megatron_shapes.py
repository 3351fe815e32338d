"""Arguments of Megatron-LM: which model they build, and which ones we do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.megatron_shapes import (
    ABSENT,
    REQUIRED,
    config_json,
    refuse_other_shape,
    shape_from_args,
)
from megatron_soaes.recipe.shapes import Llama3Rope, shape_from_config

ARGS: dict[str, Any] = {
    "num_layers": 28,
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "group_query_attention": True,
    "num_query_groups": 4,
    "kv_channels": 128,
    "ffn_hidden_size": 18944,
    "max_position_embeddings": 4096,
    "padded_vocab_size": 152064,
    "untie_embeddings_and_output_weights": True,
    "norm_epsilon": 1e-6,
    "rotary_base": 1000000,
    "add_qkv_bias": True,
    **REQUIRED,
}
"""Qwen2.5-7B."""
WITHOUT = {"add_qkv_bias": False}
NOT_BUILT: dict[str, Any] = {
    "num_experts": 8,
    "multi_latent_attention": True,
    "experimental_attention_variant": "gated_delta_net",
    "linear_attention_type": "gated_delta_net",
    "linear_attention_freq": 4,
    "heterogeneous_layers_config_path": "blocks.json",
    "heterogeneous_layers_config_encoded_json": "{}",
    "is_hybrid_model": True,
    "hybrid_override_pattern": "M*M-",
    "hybrid_layer_pattern": "M*M-",
    "mtp_num_layers": 1,
    "retro_add_retriever": True,
    "use_legacy_models": True,
    "spec": ["my.specs", "layer"],
    "yaml_cfg": "model.yaml",
    "rope_type": "yarn",
    "rotary_percent": 0.5,
    "rotary_interleaved": True,
    "rotary_seq_len_interpolation_factor": 4,
    "no_rope_freq": 4,
    "mrope_section": [16, 24, 24],
    "apply_layernorm_1p": True,
    "apply_residual_connection_post_layernorm": True,
    "squared_relu": True,
    "quick_geglu": True,
    "openai_gelu": True,
    "glu_linear_offset": 1.0,
    "activation_func_clamp_value": 7.0,
    "window_size": (4096, 0),
    "softmax_type": "learnable",
    "softmax_scale": 0.1,
    "qk_l2_norm": True,
    "attention_output_gate": True,
    "use_mup": True,
    "normalization": "LayerNorm",
    "position_embedding_type": "learned_absolute",
    "swiglu": False,
    "add_bias_linear": True,
}


def test_the_shape_of_qwen2_5_7b() -> None:
    shape = shape_from_args(ARGS, 151936, "args")
    assert shape.family == "qwen2"
    assert (shape.layers, shape.hidden, shape.kv_heads, shape.ffn) == (28, 3584, 4, 18944)
    assert (shape.vocab_size, shape.tied_embeddings) == (151936, False)
    assert (shape.norm_eps, shape.rope_theta, shape.rope_scaling) == (1e-6, 1e6, None)


@pytest.mark.parametrize(
    ("changes", "family"),
    [({}, "qwen2"), (WITHOUT, "llama"), (WITHOUT | {"qk_layernorm": True}, "qwen3")],
)
def test_the_family_follows_from_biases_and_norms(changes: dict[str, Any], family: str) -> None:
    assert shape_from_args(ARGS | changes, 1000, "args").family == family


def test_without_groups_every_head_has_its_own_keys() -> None:
    ungrouped = ARGS | {"group_query_attention": False, "num_query_groups": 1}
    assert shape_from_args(ungrouped, 1000, "args").kv_heads == 28


@pytest.mark.parametrize("name", sorted({*ABSENT, *REQUIRED}))
def test_an_argument_that_is_not_built_is_named(name: str) -> None:
    with pytest.raises(UserError) as error:
        shape_from_args(ARGS | {name: NOT_BUILT[name]}, 1000, "common.pt: args")
    assert error.value.where == f"common.pt: args: {name}"
    assert error.value.found == repr(NOT_BUILT[name])


@pytest.mark.parametrize("name", sorted(ARGS.keys() - {"add_qkv_bias"}))
def test_an_argument_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"args: {name}: found nothing"):
        shape_from_args({n: v for n, v in ARGS.items() if n != name}, 1000, "args")


def test_options_a_version_does_not_know_are_off() -> None:
    assert not ABSENT.keys() & ARGS.keys()
    shape_from_args(ARGS, 1000, "args")


@pytest.mark.parametrize("value", ["28", 0, -1, 2.5, True])
def test_a_dimension_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="args: num_layers: found"):
        shape_from_args(ARGS | {"num_layers": value}, 1000, "args")


def test_biases_together_with_norms_belong_to_no_family() -> None:
    with pytest.raises(UserError, match="add_qkv_bias: found True; expected False beside qk"):
        shape_from_args(ARGS | {"qk_layernorm": True}, 1000, "args")


def test_a_tokenizer_with_more_ids_than_rows_is_refused() -> None:
    with pytest.raises(UserError, match="padded_vocab_size: found 152064; expected at least the 1"):
        shape_from_args(ARGS, 152065, "args")


LLAMA3 = ARGS | WITHOUT | {"use_rope_scaling": True, "rope_scaling_factor": 8.0}


def test_llama_3_rope_scaling_has_megatron_cores_parameters() -> None:
    shape = shape_from_args(LLAMA3, 1000, "args")
    assert shape.rope_scaling == Llama3Rope(8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize("used", [8.0, 32.0])
def test_only_a_config_json_tells_which_factor_a_run_used(used: float) -> None:
    """gpt_builders.py ignores rope_scaling_factor, later builders do not."""
    args = LLAMA3 | {"rope_scaling_factor": 32.0}
    with pytest.raises(UserError, match=r"rope_scaling_factor: found 32\.0; expected 8\.0, or a"):
        shape_from_args(args, 1000, "args")
    known = shape_from_args(LLAMA3, 1000, "args")
    known = replace(known, rope_scaling=Llama3Rope(used, 1.0, 4.0, 8192))
    assert shape_from_args(args, 1000, "args", known) == known


def test_a_config_json_of_another_model_is_refused_by_the_field() -> None:
    shape = shape_from_args(ARGS, 1000, "args")
    refuse_other_shape(shape, replace(shape, max_position=32768), "config.json")
    with pytest.raises(UserError, match=r"config\.json: rope_theta: found 10000\.0; expected 1000"):
        refuse_other_shape(shape, replace(shape, rope_theta=10000.0), "config.json")


@given(
    groups=st.integers(1, 8),
    per_group=st.integers(1, 8),
    kv_channels=st.sampled_from([8, 64, 128]),
    untied=st.booleans(),
    options=st.sampled_from(
        [WITHOUT, {}, WITHOUT | {"qk_layernorm": True}, WITHOUT | {"use_rope_scaling": True}]
    ),
)
def test_a_config_json_reads_back_as_the_shape(
    groups: int, per_group: int, kv_channels: int, untied: bool, options: dict[str, Any]
) -> None:
    changes = {
        "num_query_groups": groups,
        "num_attention_heads": groups * per_group,
        "kv_channels": kv_channels,
        "untie_embeddings_and_output_weights": untied,
    }
    shape = shape_from_args(ARGS | changes | options, 1000, "args")
    assert shape_from_config(config_json(shape, 7), "config.json") == shape
