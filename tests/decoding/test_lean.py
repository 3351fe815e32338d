"""The lean loop computes what transformers computes, however tokens are cut into passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_soaes.decoding.cache import KVCache, Window
from megatron_soaes.decoding.interface import LogLikelihood, Sampling
from megatron_soaes.decoding.lean import LeanGenerator, LeanModel
from megatron_soaes.decoding.sampling import next_tokens, uniform_draws
from megatron_soaes.errors import UserError
from tests.checkpoint.tiny import edit_weights, make_model
from tests.decoding.material import (
    GREEDY,
    MODELS,
    NEW_TOKENS,
    PROMPTS,
    REQUESTS,
    SAMPLED,
    greedy_by_transformers,
    text_of,
    transformers_model,
)

ALL_MODELS = pytest.mark.parametrize("model", MODELS)
SEQUENCE = [number * 37 % 250 for number in range(40)]


@pytest.fixture(scope="module")
def lean(models: Path) -> LeanModel:
    return LeanModel(models / "qwen3" / "hf")


def written(model: LeanModel, batch_size: int, sampling: Sampling = GREEDY) -> list[list[int]]:
    generator = LeanGenerator(model, text_of, batch_size)
    return [list(one.tokens) for one in generator.generate(PROMPTS, sampling)]


@ALL_MODELS
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_it_writes_what_transformers_writes(
    models: Path, greedy: dict[str, list[list[int]]], model: str, batch_size: int
) -> None:
    assert len({token for tokens in greedy[model] for token in tokens}) > 40, "nothing is tested"
    assert written(LeanModel(models / model / "hf"), batch_size) == greedy[model]


def test_a_cache_does_not_change_what_is_written(
    models: Path, greedy: dict[str, list[list[int]]]
) -> None:
    assert greedy_by_transformers(models / "qwen3" / "hf", cached=False) == greedy["qwen3"]


@ALL_MODELS
def test_likelihoods_are_those_of_transformers(
    models: Path, likelihoods: dict[str, list[LogLikelihood]], model: str
) -> None:
    found = LeanGenerator(LeanModel(models / model / "hf"), text_of, 4).log_likelihoods(REQUESTS)
    for one, wanted in zip(found, likelihoods[model], strict=True):
        assert one.total == pytest.approx(wanted.total, abs=1e-4)
        assert one.greedy == wanted.greedy


def test_what_greedy_decoding_writes_is_greedy(lean: LeanModel) -> None:
    generator = LeanGenerator(lean, text_of)
    tokens = generator.generate(PROMPTS[:1], GREEDY)[0].tokens
    other = (*tokens[:-1], (tokens[-1] + 1) % 250)
    found = generator.log_likelihoods([(PROMPTS[0], tokens), (PROMPTS[0], other)])
    assert [one.greedy for one in found] == [True, False]
    assert found[1].total < found[0].total


def test_bf16_is_close_to_fp32(models: Path) -> None:
    hf_dir = models / "llama" / "hf"
    request = [(SEQUENCE[:20], SEQUENCE[20:])]
    exact, rounded = (
        LeanGenerator(LeanModel(hf_dir, dtype), text_of).log_likelihoods(request)[0].total
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)


def through(model: LeanModel, cuts: list[int], key_length: int | None = None) -> Tensor:
    """Logits [n, vocabulary] of SEQUENCE, its tokens given in passes that end at the cuts.

    With `key_length` every pass is filled up to 8 tokens, as for results that are bitwise equal.
    """
    cache = model.new_cache(1, 64)
    parts = []
    for start, end in zip([0, *cuts], [*cuts, len(SEQUENCE)], strict=True):
        count = end - start
        tokens = SEQUENCE[start:end] + [0] * (8 - count if key_length else 0)
        hidden = model.hidden(torch.tensor([tokens]), cache, key_length=key_length)
        parts.append(model.logits(hidden)[0, :count])
        cache.lengths[0] += count
    return torch.cat(parts)


@ALL_MODELS
def test_passes_of_any_length_give_the_logits_of_transformers(models: Path, model: str) -> None:
    hf_dir = models / model / "hf"
    with torch.no_grad():
        expected = transformers_model(hf_dir)(torch.tensor([SEQUENCE])).logits[0]
    lean = LeanModel(hf_dir)
    for cuts in ([], [39], list(range(1, 40)), [7, 8, 20, 25]):
        torch.testing.assert_close(through(lean, cuts), expected, atol=1e-4, rtol=0)


cuts_of_at_most_8 = st.lists(st.integers(1, 8), min_size=40, max_size=40).map(
    lambda steps: sorted({sum(steps[:n]) for n in range(1, 40) if sum(steps[:n]) < 40})
)


@settings(deadline=None, max_examples=15)
@given(cuts_of_at_most_8, st.sampled_from([torch.float32, torch.bfloat16]))
def test_passes_of_one_shape_are_bitwise_equal(
    models: Path, cuts: list[int], dtype: torch.dtype
) -> None:
    lean = LeanModel(models / "qwen2" / "hf", dtype)
    one_by_one = through(lean, list(range(1, 40)), key_length=56)
    assert torch.equal(through(lean, cuts, key_length=56), one_by_one)


def test_lowering_the_length_takes_tokens_back(lean: LeanModel) -> None:
    cache = lean.new_cache(1, 64)
    lean.hidden(torch.tensor([SEQUENCE[:10]]), cache)
    cache.lengths[0] = 10
    lean.hidden(torch.tensor([[1, 2, 3, 4]]), cache)
    cache.lengths[0] = 10 + 4
    cache.lengths[0] = 10
    hidden = lean.hidden(torch.tensor([SEQUENCE[10:15]]), cache)
    expected = through(lean, [])[10:15]
    torch.testing.assert_close(lean.logits(hidden)[0], expected, atol=1e-4, rtol=0)


def test_rows_of_different_lengths_verify_several_tokens_at_once(lean: LeanModel) -> None:
    cache = lean.new_cache(3, 64)
    for row, length in enumerate((4, 11, 30)):
        lean.hidden(torch.tensor([SEQUENCE[:length]]), cache, first_row=row)
        cache.lengths[row] = length
    tokens = torch.tensor([SEQUENCE[length : length + 5] for length in (11, 30)])
    logits = lean.logits(lean.hidden(tokens, cache, first_row=1))
    whole = through(lean, [])
    expected = torch.stack([whole[11:16], whole[30:35]])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_more_tokens_than_a_cache_holds_are_refused(lean: LeanModel) -> None:
    cache = lean.new_cache(1, 8)
    with pytest.raises(ValueError, match="9 positions"):
        Window(cache, 0, 1, 9)
    assert isinstance(cache, KVCache)


@torch.no_grad()
def test_each_position_takes_the_token_of_its_own_draw(models: Path, lean: LeanModel) -> None:
    model = transformers_model(models / "qwen3" / "hf")
    for prompt, tokens in zip(PROMPTS[:3], written(lean, 32, SAMPLED), strict=False):
        draws = uniform_draws(SAMPLED.seed, prompt, NEW_TOKENS)
        logits = model(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :]
        assert next_tokens(logits, SAMPLED, draws.tolist()).tolist() == tokens


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_draws_do_not_depend_on_the_batch(lean: LeanModel, batch_size: int) -> None:
    assert written(lean, batch_size, SAMPLED) == written(lean, 5, SAMPLED)


def test_draws_do_not_depend_on_other_prompts(lean: LeanModel) -> None:
    generator = LeanGenerator(lean, text_of)
    backwards = generator.generate(PROMPTS[::-1], SAMPLED)[::-1]
    assert [list(one.tokens) for one in backwards] == written(lean, 32, SAMPLED)


def test_another_seed_draws_otherwise(lean: LeanModel) -> None:
    assert written(lean, 32, replace(SAMPLED, seed=4)) != written(lean, 32, SAMPLED)


def test_a_stop_token_ends_a_completion_and_is_left_out(
    lean: LeanModel, greedy: dict[str, list[list[int]]]
) -> None:
    stop = greedy["qwen3"][0][5]
    found = LeanGenerator(lean, text_of, 2).generate(PROMPTS, replace(GREEDY, stop_ids=(stop,)))
    for one, tokens in zip(found, greedy["qwen3"], strict=True):
        end = tokens.index(stop) if stop in tokens else NEW_TOKENS
        assert list(one.tokens) == tokens[:end]
        assert one.text == text_of(tokens[:end])
        assert one.finish == ("stop" if end < NEW_TOKENS else "length")
    assert {one.finish for one in found} == {"stop", "length"}


def test_one_new_token_is_possible(lean: LeanModel, greedy: dict[str, list[list[int]]]) -> None:
    assert written(lean, 2, Sampling(1)) == [tokens[:1] for tokens in greedy["qwen3"]]


@pytest.mark.parametrize(
    ("prompt", "found"), [([], "no tokens"), ([3, 250], "token 250"), ([1] * 241, "241 tokens")]
)
def test_prompts_that_the_model_cannot_take_are_refused(
    lean: LeanModel, prompt: list[int], found: str
) -> None:
    with pytest.raises(UserError, match=f"prompt 1: found {found}"):
        LeanGenerator(lean, text_of).generate([[1], prompt], GREEDY)


def test_an_incomplete_directory_is_refused_by_the_name_of_the_tensor(tmp_path: Path) -> None:
    hf_dir = make_model(tmp_path / "hf")
    edit_weights(hf_dir, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"model\.layers\.2\.mlp\.up_proj\.weight: found nothing"):
        LeanModel(hf_dir)
