"""Distillation losses and gradients against dense fp64 autograd, whole and split over two ranks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_soaes.accelerator.launch import launch
from megatron_soaes.errors import UserError
from megatron_soaes.losses import vocab_parallel
from megatron_soaes.losses.agreement import acceptance_rates
from megatron_soaes.losses.cross_entropy import token_losses
from megatron_soaes.losses.distillation import (
    distillation_losses,
    token_divergences,
)
from megatron_soaes.losses.divergences import ForwardKL, JensenShannon, ReverseKL
from megatron_soaes.losses.teachers import DenseTeacher, TopKTeacher, draw, log_weights, top_k
from tests.losses.distillation_cases import (
    DIVERGENCES,
    Case,
    all_cases,
    call,
    expected,
    make_teacher,
    overlap,
    uniform,
)

CASES = all_cases()
SMOOTH = ["forward-kl", "reverse-kl", "jensen-shannon", "jensen-shannon-0.1"]

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("distillation")
    code = launch("tests.losses.distillation_two_ranks", [str(folder)], 2, folder / "logs")
    assert code == 0, (folder / "logs" / "rank1.log").read_text(encoding="utf-8")
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def reference(case: Case) -> dict[str, Tensor]:
    """Of the same draws, where the teacher is sampled."""
    sampled = case.teacher.startswith("sampled")
    return expected(case, make_teacher(case, case.tensors()[1]) if sampled else None)


@pytest.mark.parametrize("name", CASES)
def test_one_rank(name: str) -> None:
    found, right = call(CASES[name]), reference(CASES[name])
    torch.testing.assert_close(found["losses"], right["losses"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["gradient"], right["gradient"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_that_share_the_vocabulary(two_ranks: list[Any], name: str) -> None:
    found = [results[name] for results, _ in two_ranks]
    right = reference(CASES[name])
    for rank in found:
        torch.testing.assert_close(rank["losses"], right["losses"], rtol=1e-5, atol=1e-5)
    gradient = torch.cat([rank["gradient"] for rank in found], dim=-1)
    torch.testing.assert_close(gradient, right["gradient"], rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(DIVERGENCES)), st.integers(1, 40), st.floats(0.5, 4.0), st.data())
def test_any_shape(name: str, vocab_size: int, temperature: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, vocab_size))
    case = Case(
        name,
        data.draw(st.sampled_from(["dense", f"top {k}"])),
        vocab_size,
        temperature,
        positions=data.draw(st.integers(2, 4)),
        padded=data.draw(st.integers(vocab_size, 48)),
        scale=1.0,
        seed=data.draw(st.integers(0, 2**31)),
    )
    found, right = call(case), reference(case)
    torch.testing.assert_close(found["losses"], right["losses"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["gradient"], right["gradient"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("teacher", ["dense", "top 7", "top 59"])
def test_a_student_that_agrees_loses_nothing(name: str, teacher: str) -> None:
    case = Case(name, teacher)
    logits = case.tensors()[1].requires_grad_()
    losses = token_divergences(
        logits,
        case.tensors()[3],
        make_teacher(case, logits.detach()),
        divergence=DIVERGENCES[name],
        vocab_size=case.vocab_size,
    )
    losses.sum().backward()
    assert losses.abs().max() < 1e-6
    assert logits.grad is not None
    # Where p and q differ by rounding alone, the total variation's slope is that rounding's sign.
    if teacher == "dense" or name in SMOOTH:
        assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("name", [*SMOOTH, "total-variation"])
def test_a_sparse_teacher_never_sees_more_than_the_dense_one(name: str) -> None:
    bounds = [call(Case(name, f"top {k}"))["losses"] for k in (1, 4, 16, 58)]
    bounds.append(call(Case(name))["losses"])
    for fewer, more in pairwise(bounds):
        assert (fewer <= more + 1e-5).all()
    torch.testing.assert_close(bounds[-2], bounds[-1])


def test_draws_estimate_the_dense_loss_and_gradient_without_bias() -> None:
    """The mean of 4000 estimates from 3 draws each, within 3 standard errors; one fixed seed."""
    rounds, tokens = 4000, 16
    generator = torch.Generator().manual_seed(5)
    student = torch.randn(1, 2, tokens, generator=generator)
    target = student + torch.randn(1, 2, tokens, generator=generator)
    weights = torch.ones(1, 2 * rounds)
    logits = student.repeat(1, rounds, 1).requires_grad_()
    numbers = uniform(1, 2 * rounds, 3, seed=6)
    teacher, _ = draw(target.repeat(1, rounds, 1), numbers, tokens, exponent=0.5)
    losses = token_divergences(logits, weights, teacher, divergence=ForwardKL(), vocab_size=tokens)
    losses.sum().backward()
    assert logits.grad is not None
    leaf = student.clone().requires_grad_()
    dense = token_divergences(
        leaf, torch.ones(1, 2), DenseTeacher(target), divergence=ForwardKL(), vocab_size=tokens
    )
    dense.sum().backward()
    assert leaf.grad is not None
    for found, right in (
        (losses.detach().view(rounds, 2), dense.detach()[0]),
        (logits.grad.view(rounds, 2, tokens), leaf.grad[0]),
    ):
        error = found.std(0) / rounds**0.5
        assert ((found.mean(0) - right).abs() < 3 * error).all()


def test_taking_the_draws_for_plain_ones_would_be_seen() -> None:
    """The weights matter: without them draws from p ** 0.5 estimate another loss."""
    case = Case("forward-kl", positions=50, vocab_size=16, padded=16, scale=1.0)
    logits = case.tensors()[1].nan_to_num()
    teacher, _ = draw(logits, uniform(*logits.shape[:2], 500, seed=0), 16, exponent=0.5)
    ones = torch.full_like(teacher.log_weights, -torch.tensor(500.0).log().item())
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)[1]
    right = -(teacher.log_weights.exp() * teacher.log_probs).sum(-1)[1]
    wrong = -(ones.exp() * teacher.log_probs).sum(-1)[1]
    assert (right - entropy).abs().mean() < 0.1 < (wrong - entropy).abs().mean()


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    """Tokens in the order of their ids, with probabilities 0.5, 0.2 and 0.3; the fourth is none."""
    logits = torch.tensor([0.5, 0.2, 0.3, 9.0]).log().expand(1, 3, 4)
    numbers = torch.tensor([[[0.0, 0.49], [0.51, 0.69], [0.71, 0.999]]], dtype=torch.float64)
    teacher, _ = draw(logits, numbers, vocab_size=3)
    assert teacher.ids.tolist() == [[[0, 0], [1, 1], [2, 2]]]


def test_draws_are_refused_where_they_would_be_biased() -> None:
    with pytest.raises(UserError, match="ReverseKL with draws"):
        call(Case("reverse-kl", "sampled 5"))


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5])
def test_a_jensen_shannon_divergence_that_vanishes_is_refused(beta: float) -> None:
    with pytest.raises(UserError, match="strictly between 0 and 1"):
        JensenShannon(beta)


def test_a_teacher_with_another_padded_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="same padded vocabulary"):
        token_divergences(
            torch.zeros(1, 2, 64), torch.ones(1, 2), DenseTeacher(torch.zeros(1, 2, 72)),
            divergence=ForwardKL(), vocab_size=60,
        )  # fmt: skip


def test_a_token_the_teacher_excludes_gives_no_nan() -> None:
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    target = torch.tensor([0.0, 1.0, -torch.inf, -torch.inf]).repeat(1, 2, 1)
    for divergence in DIVERGENCES.values():
        losses = token_divergences(
            logits, torch.ones(1, 2), DenseTeacher(target), divergence=divergence, vocab_size=4
        )
        losses.sum().backward()
        assert losses.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_bf16_logits_are_worked_on_in_fp32() -> None:
    student, target, _, weights = Case("forward-kl").tensors()
    rounded = [x.bfloat16() for x in (student, target)]
    found, right = (
        token_divergences(
            a, weights, DenseTeacher(b), divergence=ReverseKL(), vocab_size=59
        )
        for a, b in (rounded, [x.float() for x in rounded])
    )  # fmt: skip
    assert found.dtype == torch.float32
    assert torch.equal(found, right)


@pytest.mark.parametrize("teacher", ["dense", "top 7"])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch, teacher: str) -> None:
    case = Case("hybrid", teacher)
    whole = call(case)
    monkeypatch.setitem(vocab_parallel.CHUNK_BYTES, "cpu", 5 * 4 * case.padded)
    parts = call(case)
    torch.testing.assert_close(parts["losses"], whole["losses"])
    torch.testing.assert_close(parts["gradient"], whole["gradient"])


@pytest.mark.parametrize("teacher", ["dense", "top 3", "sampled 3"])
def test_little_more_than_the_logits_is_kept_for_the_backward_pass(teacher: str) -> None:
    case = Case("forward-kl", teacher, vocab_size=3000, padded=3000, positions=20)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    student, target, _, weights = case.tensors()
    logits = student.requires_grad_()
    made = make_teacher(case, target)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        token_divergences(logits, weights, made, divergence=ForwardKL(), vocab_size=3000)
    held = logits.nbytes * (2 if teacher == "dense" else 1)
    assert sum(kept.values()) < held * 1.02


def test_all_cross_entropy_is_the_cross_entropy() -> None:
    student, target, labels, weights = Case("forward-kl").tensors()
    losses = distillation_losses(
        student, labels, weights, DenseTeacher(target),
        divergence=ForwardKL(), vocab_size=59, cross_entropy_weight=1.0,
    )  # fmt: skip
    right = torch.where(weights > 0, token_losses(student, labels, 59), 0.0)
    torch.testing.assert_close(losses, right)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_acceptance_is_the_overlap(temperature: float) -> None:
    student, target, _, weights = Case("forward-kl").tensors()
    found = acceptance_rates(
        student, weights, DenseTeacher(target), vocab_size=59, temperature=temperature
    )
    p, q = ((x[..., :59].double() / temperature).softmax(-1) for x in (target, student))
    torch.testing.assert_close(found, torch.where(weights > 0, overlap(p, q), 0.0).float())
    upper = acceptance_rates(
        student, weights, top_k(target, 3, 59, temperature), vocab_size=59,
        temperature=temperature,
    )  # fmt: skip
    assert (upper >= found - 1e-6).all()


@pytest.mark.parametrize("name", ["top 40", "sampled 200"])
def test_two_ranks_make_the_teacher_that_one_makes(two_ranks: list[Any], name: str) -> None:
    """40 of the first rank's 32 tokens and the second's 27."""
    case = Case("forward-kl", name)
    right = vars(make_teacher(case, case.tensors()[1]))
    weighed = case.tensors()[3] > 0
    for _, teachers in two_ranks:
        for field, value in teachers[name].items():
            found, wanted = value[weighed], right[field][weighed]
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_top_k_keeps_a_tail_that_1_minus_the_rest_would_lose() -> None:
    found = top_k(torch.tensor([[[30.0, 1.0, 0.0, -1.0]]]), 2, vocab_size=3)
    assert found.ids.tolist() == [[[0, 1]]]
    torch.testing.assert_close(found.log_residual, torch.tensor([[-30.0]]))
    everything = top_k(torch.zeros(1, 1, 4), 4, vocab_size=4)
    assert everything.log_residual.item() == -torch.inf


def test_a_k_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="1 to 3"):
        top_k(torch.zeros(1, 1, 4), 4, vocab_size=3)


@pytest.mark.parametrize("exponent", [1.0, 0.7])
def test_the_weights_are_found_again_from_what_a_store_keeps(exponent: float) -> None:
    logits = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    teacher, normalizer = draw(logits, uniform(2, 3, 8, seed=1), 20, exponent=exponent)
    found = log_weights(teacher.log_probs, normalizer[..., None], exponent)
    torch.testing.assert_close(found, teacher.log_weights)
    if exponent == 1.0:
        torch.testing.assert_close(found.exp(), torch.full_like(found, 1 / 8))


def test_stored_probabilities_that_rounding_made_too_large_sum_to_one_again() -> None:
    case = Case("reverse-kl", "top 7")
    student, target, _, weights = case.tensors()
    made = make_teacher(case, target)
    assert isinstance(made, TopKTeacher)
    too_large = TopKTeacher(made.ids, made.log_probs + 0.1, made.log_residual + 0.1)
    found, right = (
        token_divergences(student, weights, x, divergence=ReverseKL(), vocab_size=59)
        for x in (too_large, made)
    )
    torch.testing.assert_close(found, right)
