"""What speculative decoding gains from an acceptance rate. Pure functions, no torch.

Formulas are those of Leviathan et al. (arXiv 2211.17192). Tokens per target pass always include
the one that the target adds itself, after a rejection or as a bonus. The draft length is their
gamma, the cost ratio their c: the time of one draft pass over that of one target pass.
"""

from __future__ import annotations

from collections.abc import Sequence


def expected_tokens(acceptance_rate: float, draft_length: int) -> float:
    """(1 - alpha ** (gamma + 1)) / (1 - alpha), equation 1: tokens per target pass.

    Assumes that every drafted token is accepted with the same probability, independently.
    """
    return expected_tokens_by_position([acceptance_rate] * draft_length)


def expected_tokens_by_position(acceptance_rates: Sequence[float]) -> float:
    """1 + sum over i of alpha_1 * ... * alpha_i: tokens per target pass.

    Entry i is the rate at which the draft's i-th token is accepted where all before it were; the
    draft length is their number. With equal rates it is `expected_tokens`.
    """
    tokens, reached = 1.0, 1.0
    for rate in acceptance_rates:
        reached *= rate
        tokens += reached
    return tokens


def ideal_speedup(tokens: float, draft_length: int, cost_ratio: float) -> float:
    """tokens / (gamma * c + 1), theorem 3.8: over decoding with the target alone.

    Ideal: checking gamma + 1 tokens is taken to cost the target as much as making one.
    """
    return tokens / (draft_length * cost_ratio + 1.0)


def best_draft_length(acceptance_rate: float, cost_ratio: float, longest: int) -> int:
    """The draft length from 0 (no draft) to `longest` with the highest ideal speedup.

    The shortest of equals. An acceptance rate at or below the cost ratio gains nothing at any
    length (corollary 3.9).
    """
    return best_draft_length_by_position([acceptance_rate] * longest, cost_ratio)


def best_draft_length_by_position(acceptance_rates: Sequence[float], cost_ratio: float) -> int:
    """As `best_draft_length`, from the rate of each position up to the longest length."""

    def speedup(length: int) -> float:
        tokens = expected_tokens_by_position(acceptance_rates[:length])
        return ideal_speedup(tokens, length, cost_ratio)

    return max(range(len(acceptance_rates) + 1), key=speedup)
