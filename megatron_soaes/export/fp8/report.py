"""What FP8 costs on texts that it was not calibrated on, and whether that is too much."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from megatron_soaes.errors import UserError

POSITIONS = 256
"""Positions whose logits are in memory at a time."""
LESS = (
    "Leave the most sensitive matrices in the model's dtype (--exclude down_proj is the usual "
    "first), keep its cache (--no-fp8-cache), or calibrate on more texts like those served."
)


@dataclass(frozen=True)
class Limits:
    """The most that FP8 may cost."""

    logit_error: float = 0.15
    perplexity_increase: float = 0.02
    acceptance_loss: float = 0.02


@dataclass(frozen=True)
class Quality:
    """The FP8 model against the original, at every position of the held-out texts."""

    logit_error: float
    """Norm of the difference of the logits over the norm of the logits, both without their mean
    over the vocabulary, which no probability depends on."""
    perplexity_before: float
    perplexity_after: float
    acceptance_before: float | None
    """Mean of sum(min(p, q)), how likely the target takes a token that the draft samples at
    temperature 1 (Leviathan et al. 2211.17192, corollary 3.6); None without a draft."""
    acceptance_after: float | None
    calibration_texts: int
    calibration_tokens: int
    held_out_texts: int
    held_out_tokens: int
    cut_texts: int
    """Texts of which only the beginning was used."""

    @property
    def perplexity_increase(self) -> float:
        """Of the perplexity before: 0.01 is one percent."""
        return self.perplexity_after / self.perplexity_before - 1.0

    @property
    def acceptance_loss(self) -> float | None:
        """Difference of the two rates, None without a draft."""
        if self.acceptance_before is None or self.acceptance_after is None:
            return None
        return self.acceptance_before - self.acceptance_after

    def lines(self) -> Iterator[str]:
        """The report, for people."""
        cut = f", {self.cut_texts} of them cut" if self.cut_texts else ""
        yield (
            f"calibrated on {self.calibration_texts} texts ({self.calibration_tokens:,} tokens), "
            f"judged on {self.held_out_texts} others ({self.held_out_tokens:,} tokens){cut}"
        )
        yield f"logit error: {self.logit_error:.2%}"
        yield (
            f"perplexity: {self.perplexity_before:.4g} -> {self.perplexity_after:.4g} "
            f"({self.perplexity_increase:+.2%})"
        )
        if self.acceptance_before is not None:
            yield f"acceptance: {self.acceptance_before:.4f} -> {self.acceptance_after:.4f}"

    def require(self, limits: Limits) -> None:
        """Raise UserError when FP8 costs more than it may, or what is no number."""
        costs = {
            "logit error": (self.logit_error, limits.logit_error, "--max-logit-error"),
            "increase of the perplexity": (
                self.perplexity_increase, limits.perplexity_increase, "--max-perplexity-increase",
            ),
            "loss of acceptance": (
                self.acceptance_loss or 0.0, limits.acceptance_loss, "--max-acceptance-loss",
            ),
        }  # fmt: skip
        for name, (found, most, option) in costs.items():
            if not found <= most:
                raise UserError(
                    f"FP8: {name}", f"{found:.4f} ({'; '.join(self.lines())})",
                    f"{most:g} at most ({option}); nothing was written", LESS,
                )  # fmt: skip


@dataclass(frozen=True)
class Outlook:
    """What a model makes of the held-out texts, before its output layer."""

    states: Sequence[Tensor]
    """[tokens, hidden] of each text."""
    output: Tensor
    """The output layer's matrix, [vocabulary, hidden]."""

    def logits(self, text: int, positions: slice) -> Tensor:
        """fp32 [positions, vocabulary]."""
        return F.linear(self.states[text][positions], self.output)


def measure(
    texts: Sequence[Tensor], before: Outlook, after: Outlook, draft: Outlook | None
) -> dict[str, Any]:
    """The measured fields of `Quality`. All sums are fp64.

    Logits and acceptance count every position, perplexity those with a next token. A draft may have
    more or fewer vocabulary rows than the target: the tokens that both have are compared.
    """
    error = size = 0.0
    losses, accepted = [0.0, 0.0], [0.0, 0.0]
    for number, text in enumerate(texts):
        for first in range(0, len(text), POSITIONS):
            here = slice(first, first + POSITIONS)
            pair = before.logits(number, here), after.logits(number, here)
            exact, quantised = (_centred(logits) for logits in pair)
            error += float((quantised - exact).double().square().sum())
            size += float(exact.double().square().sum())
            labels = text[first + 1 : first + 1 + POSITIONS].to(exact.device)
            for side, logits in enumerate(pair):
                losses[side] += _loss(logits, labels)
                if draft is not None:
                    accepted[side] += _accepted(logits, draft.logits(number, here))
    tokens = sum(len(text) for text in texts)
    perplexities = [math.exp(loss / (tokens - len(texts))) for loss in losses]
    rates = [None, None] if draft is None else [rate / tokens for rate in accepted]
    return {
        "logit_error": math.sqrt(error / size),
        "perplexity_before": perplexities[0],
        "perplexity_after": perplexities[1],
        "acceptance_before": rates[0],
        "acceptance_after": rates[1],
    }


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(-1, keepdim=True)


def _loss(logits: Tensor, labels: Tensor) -> float:
    losses = F.cross_entropy(logits[: len(labels)], labels, reduction="none")
    return float(losses.double().sum())


def _accepted(target: Tensor, draft: Tensor) -> float:
    both = min(target.shape[-1], draft.shape[-1])
    p, q = (logits[:, :both].softmax(-1) for logits in (target, draft))
    return float(torch.minimum(p, q).double().sum())
