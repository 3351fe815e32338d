"""Draws are functions of seed, prompt and position, and follow the softmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_soaes.decoding.interface import Sampling
from megatron_soaes.decoding.sampling import draw, next_tokens, probabilities, uniform_draws
from megatron_soaes.errors import UserError

LOGITS = torch.tensor([[1.0, 3.0, -1.0, 2.5, 0.0, 2.0]])


def test_a_longer_completion_begins_with_the_draws_of_a_shorter() -> None:
    assert uniform_draws(7, [1, 2], 5).tolist() == uniform_draws(7, [1, 2], 9)[:5].tolist()


@pytest.mark.parametrize(("seed", "prompt"), [(8, [1, 2]), (7, [2, 1]), (7, [1]), (7, [1, 2, 0])])
def test_seed_and_prompt_change_the_draws(seed: int, prompt: list[int]) -> None:
    assert uniform_draws(7, [1, 2], 3).tolist() != uniform_draws(seed, prompt, 3).tolist()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.5, 0.8)])
def test_frequencies_follow_the_distribution(temperature: float, top_p: float) -> None:
    sampling = Sampling(1, temperature=temperature, top_p=top_p, seed=11)
    count = 20_000
    draws = [uniform_draws(sampling.seed, [n], 1)[0] for n in range(count)]
    tokens = next_tokens(LOGITS.expand(count, -1), sampling, draws)
    found = np.bincount(tokens.numpy(), minlength=6) / count
    likely = (LOGITS[0].double() / temperature).softmax(-1)
    if top_p < 1:
        likely[[0, 2, 4]] = 0  # 0.42, 0.30 and 0.22 reach 0.8 with the third
        likely /= likely.sum()
    for one, expected in zip(found, likely.tolist(), strict=True):
        assert abs(one - expected) < 5 * math.sqrt(expected * (1 - expected) / count) + 1e-12


@settings(deadline=None)
@given(
    st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=12),
    st.floats(0.05, 1.0),
    st.floats(0.1, 3.0),
)
def test_a_nucleus_is_the_smallest_set_that_reaches_top_p(
    values: list[float], top_p: float, temperature: float
) -> None:
    logits = torch.tensor([values])
    whole = (logits.double() / temperature).softmax(-1)[0]
    nucleus = probabilities(logits, Sampling(1, temperature, top_p))[0]
    kept = nucleus > 0
    assert nucleus.sum().item() == pytest.approx(1)
    assert whole[kept].sum() >= top_p - 1e-9
    assert whole[kept].sum() - whole[kept].min() < top_p + 1e-9
    assert not (~kept).any() or whole[~kept].max() <= whole[kept].min()


@settings(deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_every_draw_takes_a_token_that_is_possible(point: float) -> None:
    distribution = torch.tensor([[0.0, 0.1, 0.0, 0.2, 0.7, 0.0]], dtype=torch.float64) * (1 - 1e-12)
    assert draw(distribution, [point]).item() in {1, 3, 4}


def test_no_temperature_takes_the_most_likely() -> None:
    assert next_tokens(LOGITS, Sampling(1), [0.99]).tolist() == [1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_new_tokens", 0), ("temperature", -0.1), ("top_p", 0.0), ("top_p", 1.1)],
)
def test_numbers_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"sampling\.{field}"):
        Sampling(**{"max_new_tokens": 1, field: value})  # type: ignore[arg-type]
