"""The weight tables: transforms are inverse, tables complete and in Megatron-Core's names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_soaes.accelerator.groups import Rendezvous, model_parallel, process_group
from megatron_soaes.models.build import BuildOptions, build_model
from megatron_soaes.models.families import WEIGHTS, weight_table
from megatron_soaes.models.weights import GATED, QKV, VOCABULARY, checkpoint_key, slices
from megatron_soaes.recipe.schema import FamilyName
from megatron_soaes.recipe.shapes import ModelShape
from tests.models.shapes import SHAPE


def of_family(family: FamilyName, tied: bool) -> ModelShape:
    return replace(
        SHAPE, family=family, tied_embeddings=tied,
        qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
    )  # fmt: skip


ALL_SHAPES = pytest.mark.parametrize(
    "shape", [of_family(f, t) for f in WEIGHTS for t in (True, False)], ids=lambda s: s.family
)


def test_qkv_puts_each_group_of_queries_beside_its_key_and_value() -> None:
    q, k, v = torch.arange(8), torch.arange(100, 104), torch.arange(200, 204)
    joined = QKV.join(SHAPE, [q, k, v])
    assert joined.tolist() == [0, 1, 2, 3, 100, 101, 200, 201, 4, 5, 6, 7, 102, 103, 202, 203]


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_qkv_splits_into_what_was_joined(
    kv_heads: int, group: int, head_dim: int, hidden: int, bias: bool
) -> None:
    shape = replace(SHAPE, kv_heads=kv_heads, heads=kv_heads * group, head_dim=head_dim)
    rows = [shape.query_width, shape.kv_width, shape.kv_width]
    parts = [torch.randn(n) if bias else torch.randn(n, hidden) for n in rows]
    split = QKV.split(shape, QKV.join(shape, parts))
    assert all(torch.equal(a, b) for a, b in zip(split, parts, strict=True))


def test_gated_holds_all_gate_rows_before_the_up_rows() -> None:
    gate, up = torch.randn(6, 4), torch.randn(6, 4)
    joined = GATED.join(SHAPE, [gate, up])
    assert torch.equal(joined[:6], gate)
    assert all(
        torch.equal(a, b) for a, b in zip(GATED.split(SHAPE, joined), [gate, up], strict=True)
    )


def test_vocabulary_padding_is_dropped() -> None:
    padded = torch.randn(8, 4)
    (rows,) = VOCABULARY.split(SHAPE, padded)
    assert torch.equal(rows, padded[:5])


@ALL_SHAPES
def test_a_table_accounts_for_every_parameter(shape: ModelShape) -> None:
    counted = sum(
        torch.Size(part).numel()
        for weight, layer in slices(weight_table(shape), range(shape.layers))
        for part in weight.hf_shapes(shape, layer).values()
    )
    assert counted == shape.parameters


@ALL_SHAPES
def test_a_table_has_the_keys_and_shapes_megatron_core_saves(shape: ModelShape) -> None:
    table = {weight.key: weight.global_shape(shape) for weight in weight_table(shape)}
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        model = build_model(shape, BuildOptions(torch.float32, shape.vocab_size))
        parameters = {checkpoint_key(name)[0] for name, _ in model.named_parameters()}
        saved = {}
        for entry in model.sharded_state_dict().values():
            shards = entry.build() if hasattr(entry, "build") else entry
            for shard in shards if isinstance(shards, list) else [shards]:
                if "_extra_state" not in shard.key:
                    saved[shard.key] = shard.global_shape
    assert saved == table
    assert parameters == set(table)


def test_slices_follow_the_forward_pass() -> None:
    order = [(weight.key, layer) for weight, layer in slices(weight_table(SHAPE), [0, 2])]
    assert order[0] == ("embedding.word_embeddings.weight", None)
    assert [layer for _, layer in order[1:-2]] == [0] * 6 + [2] * 6
    assert [key for key, _ in order[-2:]] == [
        "decoder.final_layernorm.weight",
        "output_layer.weight",
    ]


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("output_layer.weight", ("output_layer.weight", None)),
        ("decoder.layers.11.mlp.linear_fc2.weight", ("decoder.layers.mlp.linear_fc2.weight", 11)),
        (
            "decoder.layers.0.pre_mlp_layernorm.weight",
            ("decoder.layers.mlp.linear_fc1.layer_norm_weight", 0),
        ),
    ],
)
def test_parameters_have_a_place_in_the_checkpoint(
    parameter: str, expected: tuple[str, int | None]
) -> None:
    assert checkpoint_key(parameter) == expected
