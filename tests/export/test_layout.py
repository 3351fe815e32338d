"""Who holds what: golden layouts, and every shape put together again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_soaes.errors import UserError
from megatron_soaes.export.trtllm.layout import (
    Parallelism,
    destinations,
    parts_of,
    rank_tensors,
    require_legal,
    stage_layers,
)
from megatron_soaes.export.trtllm.writer import header
from megatron_soaes.models.families import WEIGHTS, weight_table
from megatron_soaes.models.weights import slices
from megatron_soaes.recipe.shapes import ModelShape, shape_from_config
from tests.export.ranks import hf_tensors
from tests.models.shapes import SHAPE

QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944,
    "vocab_size": 152064, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}  # fmt: skip
QWEN_72B = QWEN_7B | {
    "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "intermediate_size": 29568,
}  # fmt: skip


def packed(ways: int) -> list[str]:
    """The heads in each rank's qkv rows, for 8 query and 2 key heads."""
    shape = replace(SHAPE, heads=8, kv_heads=2, head_dim=3, layers=1)
    ranks = [rank_tensors(shape, 5, Parallelism(ways, 1), rank) for rank in range(ways)]
    heads = []
    for tensors in ranks:
        qkv = next(tensor for tensor in tensors if tensor.name.endswith("qkv.weight"))
        labels = [
            f"{piece.source.split('.')[-2][0]}{row // 3}"
            for piece in qkv.pieces
            for row in range(piece.start, piece.stop, 3)
        ]
        assert qkv.shape == (3 * len(labels), shape.hidden)
        heads.append(" ".join(labels))
    return heads


@pytest.mark.parametrize(
    ("ways", "heads"),
    [
        (1, ["q0 q1 q2 q3 q4 q5 q6 q7 k0 k1 v0 v1"]),
        (2, ["q0 q1 q2 q3 k0 v0", "q4 q5 q6 q7 k1 v1"]),
        (4, ["q0 q1 k0 v0", "q2 q3 k0 v0", "q4 q5 k1 v1", "q6 q7 k1 v1"]),
    ],
)
def test_heads_are_packed_rank_by_rank_and_key_heads_shared(ways: int, heads: list[str]) -> None:
    assert packed(ways) == heads


@pytest.mark.parametrize(
    ("layers", "stages", "sizes"), [(28, 3, [10, 9, 9]), (36, 8, [5] * 4 + [4] * 4), (4, 1, [4])]
)
def test_the_first_stages_have_one_layer_more(layers: int, stages: int, sizes: list[int]) -> None:
    assert [len(part) for part in stage_layers(layers, stages)] == sizes


@given(st.integers(1, 100), st.data())
def test_layers_are_split_like_tensor_split(layers: int, data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, layers))
    expected = [part.tolist() for part in torch.arange(layers).tensor_split(stages)]
    assert [list(part) for part in stage_layers(layers, stages)] == expected


def test_layers_are_counted_from_zero_on_each_stage() -> None:
    shape = replace(SHAPE, layers=3)
    names = [
        {t.name: t.pieces[0].source for t in rank_tensors(shape, 5, Parallelism(1, 2), rank)}
        for rank in range(2)
    ]
    norm = "transformer.layers.{}.input_layernorm.weight"
    assert names[0][norm.format(1)] == "model.layers.1.input_layernorm.weight"
    assert names[1][norm.format(0)] == "model.layers.2.input_layernorm.weight"
    assert norm.format(1) not in names[1]
    ends = {"transformer.vocab_embedding.weight", "transformer.ln_f.weight", "lm_head.weight"}
    assert ends & names[0].keys() == {"transformer.vocab_embedding.weight"}
    assert ends & names[1].keys() == {"transformer.ln_f.weight", "lm_head.weight"}


def shapes_in_header(config: dict[str, Any], parallelism: Parallelism, rank: int) -> dict[str, Any]:
    """What a reader of the rank file would see; no weights are needed for that."""
    shape = shape_from_config(config, "config.json")
    raw = header(rank_tensors(shape, shape.vocab_size, parallelism, rank), "bfloat16")
    length = int.from_bytes(raw[:8], "little")
    assert len(raw) == 8 + length
    assert length % 8 == 0
    entries = json.loads(raw[8:])
    del entries["__metadata__"]
    end = 0
    for entry in entries.values():
        assert entry["data_offsets"] == [end, end + 2 * math.prod(entry["shape"])]
        end = entry["data_offsets"][1]
    return {name: entry["shape"] for name, entry in entries.items()}


def test_the_files_of_a_7b() -> None:
    shapes = shapes_in_header(QWEN_7B, Parallelism(2, 1), 0)
    layer = "transformer.layers.27."
    assert shapes[layer + "attention.qkv.weight"] == [2304, 3584]
    assert shapes[layer + "attention.qkv.bias"] == [2304]
    assert shapes[layer + "attention.dense.weight"] == [3584, 1792]
    assert shapes[layer + "mlp.fc.weight"] == shapes[layer + "mlp.gate.weight"] == [9472, 3584]
    assert shapes[layer + "mlp.proj.weight"] == [3584, 9472]
    assert shapes["lm_head.weight"] == [76032, 3584]
    assert shapes["transformer.vocab_embedding.weight"] == [152064, 3584]
    assert len(shapes) == 3 + 28 * 8


def test_the_files_of_a_72b() -> None:
    shapes = shapes_in_header(QWEN_72B, Parallelism(8, 2), 15)
    layer = "transformer.layers.39."
    assert shapes[layer + "attention.qkv.weight"] == [1280, 8192]
    assert shapes[layer + "attention.dense.weight"] == [8192, 1024]
    assert shapes[layer + "mlp.fc.weight"] == [3696, 8192]
    assert shapes["lm_head.weight"] == [19008, 8192]
    assert "transformer.vocab_embedding.weight" not in shapes
    assert len(shapes) == 2 + 40 * 8


@pytest.mark.parametrize(
    ("heads", "kv_heads", "legal"),
    [(14, 2, {1, 2}), (12, 2, {1, 2, 4}), (28, 4, {1, 2, 4}), (40, 8, {1, 2, 4, 8})],
    ids=["0.5B", "1.5B", "7B", "14B"],
)
def test_which_tensor_parallel_sizes_are_legal(heads: int, kv_heads: int, legal: set[int]) -> None:
    shape = replace(SHAPE, heads=heads, kv_heads=kv_heads, hidden=64 * heads, ffn=1024)

    def allowed(ways: int) -> bool:
        try:
            require_legal(shape, Parallelism(ways, 1))
        except UserError:
            return False
        return True

    assert {ways for ways in (1, 2, 4, 8, 16) if allowed(ways)} == legal


def test_an_illegal_size_is_refused_with_those_that_are_not() -> None:
    shape = replace(SHAPE, heads=12, kv_heads=4, hidden=24, ffn=48)
    with pytest.raises(UserError, match=r"tp: found 3; .*Choose one of 1, 2, 4, 12\."):
        require_legal(shape, Parallelism(3, 1))
    with pytest.raises(UserError, match="pp: found 4; expected 1 to 3"):
        require_legal(shape, Parallelism(1, 4))


@st.composite
def cut_models(draw: st.DrawFn) -> tuple[ModelShape, int, Parallelism]:
    """Any family and any sizes that can be cut, with any number of vocabulary rows."""
    family = draw(st.sampled_from(sorted(WEIGHTS)))
    ways, kv_heads = draw(st.sampled_from([(1, 3), (2, 2), (2, 4), (3, 3), (4, 2), (4, 1)]))
    heads = math.lcm(ways, kv_heads) * draw(st.integers(1, 2))
    layers = draw(st.integers(1, 4))
    shape = replace(
        SHAPE, family=family, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 2)), hidden=ways * draw(st.integers(1, 3)),
        ffn=ways * draw(st.integers(1, 3)), vocab_size=draw(st.integers(1, 11)),
        tied_embeddings=draw(st.booleans()), qkv_bias=family == "qwen2", qk_norm=family == "qwen3",
    )  # fmt: skip
    return shape, draw(st.integers(1, 3)), Parallelism(ways, draw(st.integers(1, layers)))


@settings(deadline=None, max_examples=60)
@given(cut_models())
def test_the_ranks_hold_every_number_of_the_model(
    case: tuple[ModelShape, int, Parallelism],
) -> None:
    shape, block_rows, parallelism = case
    require_legal(shape, parallelism)
    model = numbered(shape)
    found = hf_tensors(
        {
            "mapping": {"tp_size": parallelism.tensor}, "head_size": shape.head_dim,
            "num_key_value_heads": shape.kv_heads, "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers, "vocab_size": shape.vocab_size,
        },
        cut(shape, parallelism, model, block_rows),
    )  # fmt: skip
    if shape.tied_embeddings:
        model["lm_head.weight"] = model["model.embed_tokens.weight"]
    assert found.keys() == model.keys()
    for name, tensor in model.items():
        assert torch.equal(found[name], tensor), name


def numbered(shape: ModelShape) -> dict[str, Tensor]:
    """The HF tensors of a shape; no number occurs twice, and none is zero."""
    model: dict[str, Tensor] = {}
    last = 0
    for weight, layer in slices(weight_table(shape), range(shape.layers)):
        for name, sizes in weight.hf_shapes(shape, layer).items():
            count = math.prod(sizes)
            model[name] = torch.arange(last + 1, last + 1 + count).reshape(sizes)
            last += count
    return model


def cut(
    shape: ModelShape, parallelism: Parallelism, model: dict[str, Tensor], block_rows: int
) -> list[dict[str, Tensor]]:
    """What the ranks hold of a model that is given to them in blocks of rows."""
    plans = [
        rank_tensors(shape, shape.vocab_size, parallelism, rank)
        for rank in range(parallelism.world_size)
    ]
    ranks = [{t.name: torch.zeros(t.shape, dtype=torch.int64) for t in plan} for plan in plans]
    targets = destinations(plans)
    for name, tensor in model.items():
        for first in range(0, len(tensor), block_rows):
            block = tensor[first : first + block_rows]
            for target, row, part in parts_of(block, first, targets[name]):
                ranks[target.rank][target.tensor.name][row : row + len(part)] = part
    return ranks
