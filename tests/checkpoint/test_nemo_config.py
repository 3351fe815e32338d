"""A shape and the configuration NeMo keeps of it: inverse functions, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.checkpoint.nemo_config import MODULES, nemo_config, shape_of
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.shapes import Llama3Rope, ModelShape

SIZE = st.integers(1, 200_000)
SHAPES = st.sampled_from(["qwen2", "qwen3", "llama"]).flatmap(
    lambda family: st.builds(
        ModelShape,
        family=st.just(family),
        layers=SIZE,
        hidden=SIZE,
        heads=SIZE,
        kv_heads=SIZE,
        head_dim=SIZE,
        ffn=SIZE,
        vocab_size=SIZE,
        max_position=SIZE,
        tied_embeddings=st.booleans(),
        qkv_bias=st.just(family == "qwen2"),
        qk_norm=st.just(family == "qwen3"),
        norm_eps=st.sampled_from([1e-6, 1e-5]),
        rope_theta=st.sampled_from([10000.0, 500000.0, 1e6]),
        rope_scaling=st.none()
        if family != "llama"
        else st.none() | st.just(Llama3Rope(32.0, 1.0, 4.0, 8192)),
    )
)
QWEN2 = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_query_groups": 2,
    "kv_channels": None,
    "ffn_hidden_size": 96,
    "seq_length": 256,
    "layernorm_epsilon": 1e-6,
    "rotary_base": 1000000.0,
    "share_embeddings_and_output_weights": False,
    "vocab_size": None,
}


def qwen2_shape(**changes: Any) -> ModelShape:
    settings = {name: v for name, v in {**QWEN2, **changes}.items() if v != "missing"}
    return shape_of(MODULES["qwen2"], "Qwen2Config7B", settings, 300, "io.json")


@given(SHAPES)
def test_the_configuration_gives_the_shape_back(shape: ModelShape) -> None:
    name, arguments = nemo_config(shape)
    assert shape_of(MODULES[shape.family], name, arguments, 1, "io.json") == shape


def test_what_nemo_derives_is_derived() -> None:
    shape = qwen2_shape(num_query_groups=None)
    assert (shape.kv_heads, shape.head_dim) == (8, 8)


def test_without_a_vocabulary_the_tokenizer_decides() -> None:
    assert qwen2_shape().vocab_size == 300
    assert qwen2_shape(vocab_size=320).vocab_size == 320


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_moe_experts": 8}, "num_moe_experts: found 8; expected None or 0"),
        ({"activation_func": "torch.nn.functional.gelu"}, "activation_func: found 'torch"),
        ({"add_qkv_bias": False}, "add_qkv_bias: found False; expected True"),
        ({"qk_layernorm": True}, "qk_layernorm: found True; expected False"),
        ({"num_layers": "missing"}, "num_layers: found nothing.*Put the model.yaml"),
        ({"kv_channels": "missing"}, "kv_channels: found nothing"),
        ({"hidden_size": 0}, "hidden_size: found 0; expected a number above 0"),
        ({"rotary_base": "x"}, "rotary_base: found 'x'"),
    ],
)
def test_what_we_do_not_build_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        qwen2_shape(**changes)


@pytest.mark.parametrize(
    "name", ["nemo.collections.llm.gpt.model.gemma.Gemma", MODULES["llama"] + ".Llama4Config"]
)
def test_other_families_are_refused(name: str) -> None:
    module, _, cls = name.rpartition(".")
    with pytest.raises(UserError, match=r"found the class nemo\.collections"):
        shape_of(module, cls, QWEN2, 300, "io.json")


def test_a_scaled_llama_must_say_how() -> None:
    with pytest.raises(UserError, match="scale_factor: found nothing"):
        shape_of(MODULES["llama"], "Llama31Config8B", QWEN2, 300, "io.json")
