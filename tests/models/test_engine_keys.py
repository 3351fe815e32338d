"""Our checkpoints have the keys and shapes that Transformer Engine's layers would give them.

The lists were read from the source of Megatron-Core 0.16.1 (extensions/transformer_engine.py,
gpt_layer_specs.py) and Transformer Engine 2.11.0 (pytorch/module/): they were not recorded from a
run, for which there was no GPU. Extra states (FP8's scaling factors) are left out: they are empty
without FP8, and a load does without them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_soaes.models.build import dtype_named
from megatron_soaes.preflight.ranks import build_ranks
from megatron_soaes.recipe.schema import FamilyName
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.engine import BuildOptions
from tests.models.shapes import SHAPE

LAYERS, HIDDEN, QKV, QUERY, FFN, ROWS, HEAD = 4, 64, 128, 64, 96, 256, 8
COMMON: dict[str, tuple[int, ...]] = {
    "embedding.word_embeddings.weight": (ROWS, HIDDEN),
    # The norm before a linear layer is part of that layer's module.
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (LAYERS, HIDDEN),
    "decoder.layers.self_attention.linear_qkv.weight": (LAYERS, QKV, HIDDEN),
    "decoder.layers.self_attention.linear_proj.weight": (LAYERS, HIDDEN, QUERY),
    "decoder.layers.mlp.linear_fc1.layer_norm_weight": (LAYERS, HIDDEN),
    "decoder.layers.mlp.linear_fc1.weight": (LAYERS, 2 * FFN, HIDDEN),
    "decoder.layers.mlp.linear_fc2.weight": (LAYERS, HIDDEN, FFN),
    "decoder.final_layernorm.weight": (HIDDEN,),
    "output_layer.weight": (ROWS, HIDDEN),
}
OF_FAMILY: dict[FamilyName, dict[str, tuple[int, ...]]] = {
    "llama": {},
    "qwen2": {"decoder.layers.self_attention.linear_qkv.bias": (LAYERS, QKV)},
    "qwen3": {
        "decoder.layers.self_attention.q_layernorm.weight": (LAYERS, HEAD),
        "decoder.layers.self_attention.k_layernorm.weight": (LAYERS, HEAD),
    },
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", OF_FAMILY)
def test_keys_and_shapes_are_those_of_the_engine(
    family: FamilyName, dtype: str, tied: bool
) -> None:
    shape = replace(
        SHAPE, family=family, layers=LAYERS, hidden=HIDDEN, heads=8, kv_heads=4, head_dim=HEAD,
        ffn=FFN, vocab_size=250, tied_embeddings=tied,
        qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
    )  # fmt: skip
    layout = Layout(tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True)
    built = build_ranks(shape, BuildOptions(dtype_named(dtype), ROWS, layout))
    expected = COMMON | OF_FAMILY[family]
    if tied:
        del expected["output_layer.weight"]
    assert built.shapes == expected
