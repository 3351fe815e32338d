"""Divergences between a teacher's distribution p and a student's q, and their gradients.

Each is a function of a few sums over the vocabulary, so ranks that hold parts of it, and chunks of
rows, only ever exchange those. Arguments are log-probabilities [rows, columns] in fp32; "sums" are
[sums, rows], summed over the columns given; all values are in nats, total variation without unit.

A gradient is d loss / d z for q = softmax(z), that is q * (g - sum(q * g)) with g = d loss / d q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megatron_soaes.errors import UserError

SMALLEST_ACCEPTANCE = torch.finfo(torch.float32).tiny
"""What an acceptance that underflows counts as; its negative logarithm is 87.3 nats."""


class Divergence(Protocol):
    """How far q is from p at each position."""

    def sums(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """What the loss and the gradient need to know of the whole vocabulary, [sums, rows]."""

    def loss(self, sums: Tensor) -> Tensor:
        """The divergence from the sums over the whole vocabulary, [rows]; differentiable."""

    def gradient(self, log_p: Tensor, log_q: Tensor, sums: Tensor) -> Tensor:
        """[rows, columns] derivative of each row's loss with respect to the student's z."""


@dataclass(frozen=True)
class ForwardKL:
    """KL(p || q) = sum(p * log(p / q)): the student covers whatever the teacher may say."""

    def sums(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _kl(log_p, log_q)[None]

    def loss(self, sums: Tensor) -> Tensor:
        return sums[0]

    def gradient(self, log_p: Tensor, log_q: Tensor, sums: Tensor) -> Tensor:
        return log_q.exp() - log_p.exp()


@dataclass(frozen=True)
class ReverseKL:
    """KL(q || p) = sum(q * log(q / p)): the student keeps to what the teacher finds likely."""

    def sums(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return _kl(log_q, log_p)[None]

    def loss(self, sums: Tensor) -> Tensor:
        return sums[0]

    def gradient(self, log_p: Tensor, log_q: Tensor, sums: Tensor) -> Tensor:
        return log_q.exp() * (log_q - log_p - sums[0][:, None])


@dataclass(frozen=True)
class JensenShannon:
    """beta * KL(p || m) + (1 - beta) * KL(q || m) with m = beta * p + (1 - beta) * q.

    Generalised Jensen-Shannon divergence of Agarwal et al. (arXiv 2306.13649). It vanishes at
    beta 0 and 1; divided by beta it tends to the forward KL towards 0, divided by 1 - beta to the
    reverse KL towards 1. UserError for a beta that is not strictly between.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.beta < 1.0:
            raise UserError(
                "beta", str(self.beta), "a number strictly between 0 and 1",
                "Choose the forward KL in place of 0 and the reverse KL in place of 1.",
            )  # fmt: skip

    def sums(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        log_m = self._log_mixture(log_p, log_q)
        return torch.stack((_kl(log_p, log_m), _kl(log_q, log_m)))

    def loss(self, sums: Tensor) -> Tensor:
        return self.beta * sums[0] + (1.0 - self.beta) * sums[1]

    def gradient(self, log_p: Tensor, log_q: Tensor, sums: Tensor) -> Tensor:
        log_ratio = log_q - self._log_mixture(log_p, log_q)
        return (1.0 - self.beta) * log_q.exp() * (log_ratio - sums[1][:, None])

    def _log_mixture(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return torch.logaddexp(log_p + math.log(self.beta), log_q + math.log1p(-self.beta))


@dataclass(frozen=True)
class TotalVariation:
    """sum(|p - q|) / 2 = 1 - sum(min(p, q)): the probability that speculative decoding rejects.

    Leviathan et al. (arXiv 2211.17192), corollary 3.6. The gradient vanishes with the overlap, so
    it suits a student that is already close.
    """

    def sums(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        p, q = log_p.exp(), log_q.exp()
        return torch.stack(((p - q).abs().sum(1) / 2, *_sides(p, q)))

    def loss(self, sums: Tensor) -> Tensor:
        return sums[0]

    def gradient(self, log_p: Tensor, log_q: Tensor, sums: Tensor) -> Tensor:
        return _variation_gradient(log_p.exp(), log_q.exp(), sums[1:])


@dataclass(frozen=True)
class NegativeLogAcceptance:
    """-log(alpha) with alpha = sum(min(p, q)), taken at each position.

    The first of the two LK losses of Samarin et al. (arXiv 2602.23881). Its gradient is that of
    the total variation divided by alpha, so it is as strong far from the teacher as close to it.
    """

    def sums(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        p, q = log_p.exp(), log_q.exp()
        return torch.stack((torch.minimum(p, q).sum(1), *_sides(p, q)))

    def loss(self, sums: Tensor) -> Tensor:
        return -sums[0].clamp_min(SMALLEST_ACCEPTANCE).log()

    def gradient(self, log_p: Tensor, log_q: Tensor, sums: Tensor) -> Tensor:
        acceptance = sums[0].clamp_min(SMALLEST_ACCEPTANCE)[:, None]
        return _variation_gradient(log_p.exp(), log_q.exp(), sums[1:]) / acceptance


@dataclass(frozen=True)
class AcceptanceHybrid:
    """w * KL(p || q) + (1 - w) * (1 - alpha), w = exp(-decay * alpha), alpha = sum(min(p, q)).

    The second LK loss of Samarin et al. (arXiv 2602.23881): the KL leads while the student is far
    from the teacher, the total variation once it is close. The weight is a constant to the
    gradient; the decay is the one found best there. It is taken at each position, as vLLM's
    speculators does; SpecForge takes one weight for all positions of a batch.
    """

    decay: float = 3.0

    def sums(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        p, q = log_p.exp(), log_q.exp()
        return torch.stack((torch.minimum(p, q).sum(1), *_sides(p, q), _kl(log_p, log_q)))

    def loss(self, sums: Tensor) -> Tensor:
        weight = self._weight(sums)
        return weight * sums[3] + (1.0 - weight) * (1.0 - sums[0])

    def gradient(self, log_p: Tensor, log_q: Tensor, sums: Tensor) -> Tensor:
        p, q, weight = log_p.exp(), log_q.exp(), self._weight(sums)[:, None]
        return weight * (q - p) + (1.0 - weight) * _variation_gradient(p, q, sums[1:3])

    def _weight(self, sums: Tensor) -> Tensor:
        return (-self.decay * sums[0].detach()).exp()


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(1)


def _sides(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """How much of q lies where it is below p, and where it is above; what is equal is halved."""
    above = _above(p, q)
    return (q * (1.0 - above)).sum(1), (q * above).sum(1)


def _variation_gradient(p: Tensor, q: Tensor, sides: Tensor) -> Tensor:
    """Of the total variation; `sides` are the two sums over the whole vocabulary.

    Both sums are kept because one as 1 minus the other would be all rounding where q and p hardly
    overlap, which is where the gradient is divided by the overlap.
    """
    above = _above(p, q)
    below, over = sides[:, :, None]
    return q * (above * below - (1.0 - above) * over)


def _above(p: Tensor, q: Tensor) -> Tensor:
    return ((q - p).sign() + 1.0) / 2.0
