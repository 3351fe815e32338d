"""Rank files compute what `transformers` computes; a wrong layout does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_soaes.export.trtllm.writer import export_trtllm
from tests.checkpoint.tiny import LLAMA3_ROPE, Case, reference_logits
from tests.export import engine
from tests.export.conftest import ModelOf
from tests.export.ranks import read_config, read_ranks

BASE = {"rope_type": "default", "rope_theta": 700.0}
CASES = [
    Case("llama", rope=LLAMA3_ROPE),
    Case("qwen2", tied=True, rope=BASE),
    Case("qwen3", rope=BASE),
    Case("qwen3", tied=True, kv_heads=1, rope=BASE),
]
TOKENS = torch.arange(200) * 37 % 250
ATOL = 2e-4


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_logits_are_those_of_transformers(
    tmp_path: Path, model_of: ModelOf, case: Case, ways: int
) -> None:
    export_trtllm(model_of(case), tmp_path / "out", tensor_parallel=ways, pipeline_parallel=2)
    found = engine.logits(read_config(tmp_path / "out"), read_ranks(tmp_path / "out"), TOKENS)
    expected = reference_logits(model_of(case), TOKENS.unsqueeze(0))[0]
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)


def swap_fc_and_gate(rank: dict[str, Tensor]) -> None:
    fc, gate = (f"transformer.layers.0.mlp.{name}.weight" for name in ("fc", "gate"))
    rank[fc], rank[gate] = rank[gate], rank[fc]


def megatron_order(rank: dict[str, Tensor]) -> None:
    """Queries of a key head beside it: right for training, wrong for the engine."""
    name = "transformer.layers.0.attention.qkv.weight"
    q, k, v = rank[name].split([64, 16, 16])
    groups = zip(q.chunk(2), k.chunk(2), v.chunk(2), strict=True)
    rank[name] = torch.cat([part for group in groups for part in group])


def swap_keys_and_values(rank: dict[str, Tensor]) -> None:
    name = "transformer.layers.0.attention.qkv.weight"
    q, k, v = rank[name].split([64, 16, 16])
    rank[name] = torch.cat([q, v, k])


def swap_norms(rank: dict[str, Tensor]) -> None:
    before, after = (f"transformer.layers.0.{n}layernorm.weight" for n in ("input_", "post_"))
    rank[before], rank[after] = rank[after], rank[before]


@pytest.mark.parametrize(
    "spoil", [swap_fc_and_gate, megatron_order, swap_keys_and_values, swap_norms]
)
def test_a_wrong_layout_gives_other_logits(
    tmp_path: Path, model_of: ModelOf, spoil: Callable[[dict[str, Tensor]], None]
) -> None:
    export_trtllm(model_of(CASES[1]), tmp_path / "out")
    ranks = read_ranks(tmp_path / "out")
    spoil(ranks[0])
    found = engine.logits(read_config(tmp_path / "out"), ranks, TOKENS)
    expected = reference_logits(model_of(CASES[1]), TOKENS.unsqueeze(0))[0]
    assert (found - expected).abs().max() > 50 * ATOL


@pytest.mark.parametrize(
    ("field", "value"), [("rotary_base", 10000.0), ("norm_epsilon", 0.01), ("rotary_scaling", None)]
)
def test_a_wrong_configuration_gives_other_logits(
    tmp_path: Path, model_of: ModelOf, field: str, value: object
) -> None:
    export_trtllm(model_of(CASES[0]), tmp_path / "out")
    config = read_config(tmp_path / "out") | {field: value}
    found = engine.logits(config, read_ranks(tmp_path / "out"), TOKENS)
    expected = reference_logits(model_of(CASES[0]), TOKENS.unsqueeze(0))[0]
    assert (found - expected).abs().max() > 50 * ATOL
