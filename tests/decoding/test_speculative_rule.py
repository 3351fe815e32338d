"""Whatever the draft proposes, what is written is distributed as the target alone would write it.

First the rule itself, by summing over everything that can happen; then whole drafts with a toy pair
of models that are tables, 60,000 sequences at once, by a chi-square test that a wrong rule fails.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from megatron_soaes.decoding.acceptance_rule import (
    judge,
    judge_greedy,
    replacement,
    stay_probability,
)
from megatron_soaes.decoding.interface import Sampling
from megatron_soaes.decoding.sampling import draw, probabilities

Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

VOCABULARY = 5
SEQUENCES = 60_000
SAMPLINGS = {
    "plain": Sampling(1, temperature=1.0),
    "warm": Sampling(1, temperature=1.6),
    "top-k": Sampling(1, temperature=0.8, top_k=3),
    "top-p": Sampling(1, temperature=1.2, top_p=0.8),
    "top-k and top-p": Sampling(1, temperature=1.2, top_k=4, top_p=0.9),
}

weights = st.lists(st.floats(0, 1, width=16), min_size=VOCABULARY, max_size=VOCABULARY).filter(
    lambda values: sum(values) > 0.1
)


def distribution(values: list[float]) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor / tensor.sum()


@settings(deadline=None)
@given(weights, weights)
def test_summed_over_all_outcomes_the_rule_gives_the_targets_distribution(
    target_weights: list[float], draft_weights: list[float]
) -> None:
    target, draft = distribution(target_weights), distribution(draft_weights)
    total = torch.zeros_like(target)
    for drafted in (token for token in range(VOCABULARY) if draft[token] > 0):
        stays = stay_probability(target, draft, torch.tensor(drafted)).item()
        total[drafted] += draft[drafted] * stays
        total += draft[drafted] * (1 - stays) * replacement(target, draft)
    torch.testing.assert_close(total, target)


class Pair:
    """A target and a draft that look at the last token only: logits [previous, next]."""

    def __init__(self, target: Tensor, draft: Tensor, sampling: Sampling) -> None:
        self.target, self.draft = probabilities(target, sampling), probabilities(draft, sampling)

    def write(self, rule: Rule, generator: torch.Generator) -> Tensor:
        """Two tokens after token 0 of every sequence, int64 [sequences, 2], drafting two."""
        first = self._tokens_of_pass(rule, torch.zeros(SEQUENCES, dtype=torch.int64), generator)
        second = self._tokens_of_pass(rule, first[:, 0], generator)
        # Where the first pass wrote one token only, another pass follows it.
        return torch.stack(
            (first[:, 0], torch.where(first[:, 1] < 0, second[:, 0], first[:, 1])), 1
        )

    def _tokens_of_pass(self, rule: Rule, last: Tensor, generator: torch.Generator) -> Tensor:
        points = torch.rand(len(last), 3, 3, generator=generator, dtype=torch.float64)
        one = draw(self.draft[last], points[:, 0, 2])
        two = draw(self.draft[one], points[:, 1, 2])
        target = torch.stack((self.target[last], self.target[one], self.target[two]), dim=1)
        draft = torch.stack((self.draft[last], self.draft[one]), dim=1)
        drafted = torch.stack((one, two), dim=1)
        # A third of the sequences judges one of its two drafts, another third none.
        limits = torch.arange(len(last)) % 3
        accepted, following = rule(target, draft, drafted, limits, points[..., :2])
        written = torch.full((len(last), 2), -1)
        written[:, 0] = torch.where(accepted > 0, one, following)
        written[:, 1] = torch.where(accepted > 1, two, torch.where(accepted == 1, following, -1))
        return written

    def p_value(self, rule: Rule) -> float:
        """Of a chi-square test of the pairs written; 0 when one is impossible for the target."""
        written = self.write(rule, torch.Generator().manual_seed(5))
        found = torch.bincount(written[:, 0] * VOCABULARY + written[:, 1], minlength=VOCABULARY**2)
        expected = torch.stack(
            [self.target[0, a] * self.target[a, b] for a, b in product(range(VOCABULARY), repeat=2)]
        )
        possible = expected > 0
        if found[~possible].any():
            return 0.0
        share = expected[possible] / expected[possible].sum()
        return float(stats.chisquare(found[possible], share * SEQUENCES).pvalue)


def logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(VOCABULARY, VOCABULARY, generator=generator)


def never_agreeing(target: Tensor) -> tuple[Tensor, Tensor]:
    """A target that writes tokens 0 to 2 only, and a draft that proposes only 3 and 4."""
    hidden = torch.tensor([0, 0, 0, 1, 1]).bool()
    return target.masked_fill(hidden, -torch.inf), logits(9).masked_fill(~hidden, -torch.inf)


PAIRS = {
    "bad draft": (logits(1), logits(2)),
    "identical draft": (logits(1), logits(1)),
    "draft that never agrees": never_agreeing(logits(1)),
}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("pair", PAIRS)
def test_frequencies_are_those_of_the_target(pair: str, sampling: str) -> None:
    assert Pair(*PAIRS[pair], SAMPLINGS[sampling]).p_value(judge) > 1e-3


def keep_everything(
    target: Tensor, draft: Tensor, drafted: Tensor, limits: Tensor, points: Tensor
) -> object:
    """Wrong: trusts the draft."""
    trusted = torch.cat((draft, target[:, -1:]), dim=1)
    return judge(trusted, draft, drafted, limits, points)


def replace_by_the_target(
    target: Tensor, draft: Tensor, drafted: Tensor, limits: Tensor, points: Tensor
) -> object:
    """Wrong: replaces by a draw from p where it must be from p - q."""
    accepted, _ = judge(target, draft, drafted, limits, points)
    row = torch.arange(len(drafted))
    return accepted, draw(target[row, accepted], points[row, accepted, 1])


def keep_half(
    target: Tensor, draft: Tensor, drafted: Tensor, limits: Tensor, points: Tensor
) -> object:
    """Wrong: halves the probability to stay."""
    harder = points.clone()
    harder[..., 0] *= 2
    return judge(target, draft, drafted, limits, harder)


@pytest.mark.parametrize("wrong", [keep_everything, replace_by_the_target, keep_half])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_wrong_rule_fails_the_same_check(wrong: Rule, sampling: str) -> None:
    assert Pair(*PAIRS["bad draft"], SAMPLINGS[sampling]).p_value(wrong) < 1e-6


def test_an_identical_draft_always_stays_and_one_that_never_agrees_never() -> None:
    points = torch.rand(1000, 2, 2, dtype=torch.float64)
    for name, stays in (("identical draft", 1), ("draft that never agrees", 0)):
        pair = Pair(*PAIRS[name], SAMPLINGS["plain"])
        drafted = draw(pair.draft[0].expand(1000, -1), points[:, 1, 0])
        target = torch.stack((pair.target[0].expand(1000, -1), pair.target[drafted]), dim=1)
        draft = pair.draft[0].expand(1000, 1, -1)
        limits = torch.ones(1000, dtype=torch.int64)
        accepted, _ = judge(target, draft, drafted.unsqueeze(1), limits, points)
        assert accepted.unique().tolist() == [stays]


def test_greedy_drafts_stay_up_to_the_first_difference() -> None:
    best = torch.tensor([[4, 2, 7, 1]]).expand(4, -1)
    drafted = torch.tensor([[4, 2, 7], [4, 3, 7], [0, 2, 7], [4, 2, 7]])
    accepted, following = judge_greedy(best, drafted, torch.tensor([3, 3, 3, 2]))
    assert accepted.tolist() == [3, 1, 0, 2]
    assert following.tolist() == [1, 2, 4, 7]


def test_top_k_leaves_the_k_most_likely_and_goes_before_top_p() -> None:
    values = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    of_two = probabilities(values, Sampling(1, temperature=1.0, top_k=2))
    torch.testing.assert_close(of_two, torch.tensor([[4 / 7, 3 / 7, 0, 0]], dtype=torch.float64))
    # 0.4 of all does not reach 0.5, but 4/7 of the two does.
    both = probabilities(values, Sampling(1, temperature=1.0, top_k=2, top_p=0.5))
    assert both.tolist() == [[1, 0, 0, 0]]
