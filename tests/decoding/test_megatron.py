"""A Megatron-Core model writes what transformers writes, in every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_soaes.decoding.interface import LogLikelihood
from megatron_soaes.decoding.lean import LeanGenerator, LeanModel
from megatron_soaes.recipe.training_settings import Layout
from tests.decoding.material import (
    GREEDY,
    MODELS,
    PROMPTS,
    REQUESTS,
    SAMPLED,
    VOCABULARY,
    megatron_generator,
    text_of,
)

ALL_MODELS = pytest.mark.parametrize("model", MODELS)
ALL_LAYOUTS = pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2"])
ONE = Layout()


def results(together: Path, layout: str, model: str) -> Any:
    """What both ranks of a layout found, which must be the same."""
    first, second = (
        json.loads((together / f"{layout}-{model}-{rank}.json").read_text(encoding="utf-8"))
        for rank in (0, 1)
    )
    assert first == second
    return first


def assert_close(found: list[Any], expected: list[LogLikelihood]) -> None:
    for (total, greedy), wanted in zip(found, expected, strict=True):
        assert total == pytest.approx(wanted.total, abs=1e-4)
        assert greedy == wanted.greedy


@ALL_MODELS
@pytest.mark.usefixtures("one_process")
def test_one_process_writes_what_transformers_writes(
    models: Path, greedy: dict[str, list[list[int]]], model: str
) -> None:
    found = megatron_generator(models, model, ONE).generate(PROMPTS, GREEDY)
    assert [list(one.tokens) for one in found] == greedy[model]
    assert found[0].text == text_of(greedy[model][0])
    assert {one.finish for one in found} == {"length"}


@ALL_MODELS
@ALL_LAYOUTS
def test_a_layout_does_not_change_what_is_written(
    together: Path, greedy: dict[str, list[list[int]]], layout: str, model: str
) -> None:
    found = results(together, layout, model)
    assert [one["tokens"] for one in found["greedy"]] == greedy[model]
    assert found["none"] == []


@ALL_MODELS
@ALL_LAYOUTS
def test_a_layout_does_not_change_what_is_drawn(
    together: Path, models: Path, layout: str, model: str
) -> None:
    lean = LeanGenerator(LeanModel(models / model / "hf"), text_of)
    expected = [list(one.tokens) for one in lean.generate(PROMPTS, SAMPLED)]
    assert [one["tokens"] for one in results(together, layout, model)["sampled"]] == expected


@ALL_MODELS
@pytest.mark.usefixtures("one_process")
def test_likelihoods_are_those_of_transformers(
    models: Path, likelihoods: dict[str, list[LogLikelihood]], model: str
) -> None:
    found = megatron_generator(models, model, ONE).log_likelihoods(REQUESTS)
    assert_close(found, likelihoods[model])


@ALL_MODELS
@ALL_LAYOUTS
def test_a_layout_does_not_change_likelihoods(
    together: Path, likelihoods: dict[str, list[LogLikelihood]], layout: str, model: str
) -> None:
    assert_close(results(together, layout, model)["likelihoods"], likelihoods[model])


@pytest.mark.parametrize("field", ["virtual_pipeline", "context_parallel", "sequence_parallel"])
def test_other_layouts_are_refused_by_name(together: Path, field: str) -> None:
    for rank in (0, 1):
        assert (together / f"refused-{field}-{rank}.json").exists()


@pytest.mark.usefixtures("one_process")
def test_vocabulary_padding_is_never_written(
    models: Path, greedy: dict[str, list[list[int]]]
) -> None:
    generator = megatron_generator(models, "llama", ONE)
    output = generator.chunk.output_layer.weight
    first = [tokens[0] for tokens in greedy["llama"]][: len(output) - VOCABULARY]
    with torch.no_grad():
        output[VOCABULARY : VOCABULARY + len(first)] = 3 * output[first]
    found = generator.generate(PROMPTS, GREEDY)
    assert [list(one.tokens) for one in found] == greedy["llama"]


@pytest.mark.usefixtures("one_process")
def test_weights_are_those_of_the_moment(models: Path, greedy: dict[str, list[list[int]]]) -> None:
    generator = megatron_generator(models, "qwen2", ONE)
    weight = generator.chunk.decoder.final_layernorm.weight
    trained = weight.data.clone()
    weight.data = torch.randn_like(trained)  # other memory, as an optimizer gives parameters
    assert [list(one.tokens) for one in generator.generate(PROMPTS, GREEDY)] != greedy["qwen2"]
    weight.data = trained
    assert [list(one.tokens) for one in generator.generate(PROMPTS, GREEDY)] == greedy["qwen2"]


def test_ranks_share_one_store_of_answers(
    together: Path, greedy: dict[str, list[list[int]]]
) -> None:
    for rank in (0, 1):
        kept = json.loads((together / f"answers-{rank}.json").read_text(encoding="utf-8"))
        assert [one["tokens"] for one in kept] == greedy["qwen2"]
    lines = (together / "answers-0.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(PROMPTS)
    assert not (together / "answers-1.jsonl").exists()
