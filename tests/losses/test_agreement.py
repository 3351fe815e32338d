"""Acceptance, greedy matches and draft windows against what they mean, written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.losses.agreement import acceptance_rates, greedy_matches, window_sums
from megatron_soaes.losses.teachers import DenseTeacher, top_k
from tests.losses.distillation_cases import Case, make_teacher, overlap


@pytest.mark.usefixtures("one_process")
def test_draws_estimate_the_acceptance() -> None:
    case = Case("forward-kl", "sampled 4000")
    student, target, _, weights = case.tensors()
    found = acceptance_rates(student, weights, make_teacher(case, target), vocab_size=59)
    p, q = (x[..., :59].double().softmax(-1) for x in (target, student))
    right = torch.where(weights > 0, overlap(p, q), 0.0)
    # The standard error of 4000 draws of a number between 0 and 1 is at most 0.008.
    assert (found - right).abs().max() < 0.04


@pytest.mark.usefixtures("one_process")
def test_padding_is_never_the_most_likely_token() -> None:
    generator = torch.Generator().manual_seed(1)
    student, target = torch.randn(2, 1, 40, 64, generator=generator)
    target = student + target
    student[..., 60] = 100.0
    right = student[..., :59].argmax(-1) == target[..., :59].argmax(-1)
    assert torch.equal(greedy_matches(student, DenseTeacher(target), vocab_size=59), right)
    assert torch.equal(greedy_matches(student, top_k(target, 3, 59), vocab_size=59), right)
    assert greedy_matches(target, DenseTeacher(target), vocab_size=59).all()


Place = st.tuples(st.floats(0, 1), st.sampled_from(["follows", "begins", "does not count"]))


@given(st.lists(Place, min_size=1, max_size=12), st.integers(1, 6))
def test_windows_end_where_their_run_ends(places: list[tuple[float, str]], longest: int) -> None:
    rates = [rate for rate, _ in places]
    counts = [kind != "does not count" for _, kind in places]
    begins = [
        counts[i] and (kind == "begins" or i == 0 or not counts[i - 1])
        for i, (_, kind) in enumerate(places)
    ]
    runs = [sum(begins[: i + 1]) if counts[i] else -1 for i in range(len(places))]
    reached, accepted = [0.0] * longest, [0.0] * longest
    for first in range(len(places)):
        product = 1.0
        for place in range(longest):
            at = first + place
            if at >= len(places) or not counts[at] or (begins[at] and place > 0):
                break
            reached[place] += product
            product *= rates[at]
            accepted[place] += product
    found = window_sums(torch.tensor(rates, dtype=torch.float64), torch.tensor(runs), longest)
    assert found[0].tolist() == pytest.approx(reached)
    assert found[1].tolist() == pytest.approx(accepted)
