"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_soaes.decoding.interface import Prompt, Sampling


def uniform_draws(seed: int, prompt: Prompt, count: int) -> NDArray[np.float64]:
    """One number in [0, 1) for each new position, a function of (seed, prompt, position).

    The first n of more than n draws are the n draws, so a longer completion begins as a shorter.
    """
    key = np.asarray([seed, *prompt], dtype=np.int64).tobytes()
    counter_key = int.from_bytes(blake2b(key, digest_size=16).digest(), "big")
    return np.random.Generator(np.random.Philox(key=counter_key)).random(count)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is drawn from: [..., vocabulary] logits -> fp64, sums of 1."""
    likely = (logits.double() / sampling.temperature).softmax(-1)
    if sampling.top_p == 1 and not sampling.top_k:
        return likely
    ordered, ids = likely.sort(descending=True, stable=True)
    if sampling.top_k:
        ordered[..., sampling.top_k :] = 0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    # A token is kept when those before it do not reach top_p yet; the first always is.
    kept = ordered.cumsum(-1) - ordered < sampling.top_p
    nucleus = torch.zeros_like(likely).scatter(-1, ids, ordered * kept)
    return nucleus / nucleus.sum(-1, keepdim=True)


def draw(distribution: Tensor, draws: Sequence[float] | Tensor) -> Tensor:
    """Invert the cumulative distribution: [rows, vocabulary] fp64, a draw a row -> int64 [rows].

    In the order of token ids: rounding differences between layouts can exchange neighbours in an
    order by probability, but hardly move these sums.
    """
    sums = distribution.cumsum(-1)
    points = torch.as_tensor(draws, dtype=torch.float64, device=sums.device).unsqueeze(-1)
    # The last sum may be a little below 1; scaling keeps the point inside.
    chosen = torch.searchsorted(sums, points * sums[:, -1:], right=True).squeeze(-1)
    return chosen.clamp(max=distribution.shape[-1] - 1)


def next_tokens(logits: Tensor, sampling: Sampling, draws: Sequence[float]) -> Tensor:
    """The next token of each row: [rows, vocabulary] logits, a draw a row -> int64 [rows]."""
    if sampling.greedy:
        return logits.argmax(-1)
    return draw(probabilities(logits, sampling), draws)
