"""Which drafted tokens stay, such that what is written is what the target alone would write.

Speculative sampling (Leviathan, Kalman and Matias 2211.17192, section 2.3; Chen et al. 2302.01318).
A token x that the draft drew with probability q(x) stays with probability min(1, p(x) / q(x)), p
being the target's distribution at that place. The first that does not stay is replaced by a draw
from max(0, p - q), normalised, and those after it are dropped. If all stay, the target's
distribution after them gives one more token (the bonus token). The result is distributed as p
whatever q is. p and q are what is drawn from: after temperature, top-k and top-p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_soaes.decoding.sampling import draw


def stay_probability(target: Tensor, draft: Tensor, drafted: Tensor) -> Tensor:
    """min(1, p(x) / q(x)): p and q [..., vocabulary], x int64 [...] with q(x) > 0 -> [...]."""
    chosen = drafted.unsqueeze(-1)
    ratio = target.gather(-1, chosen) / draft.gather(-1, chosen)
    return ratio.squeeze(-1).clamp(max=1)


def replacement(target: Tensor, draft: Tensor) -> Tensor:
    """max(0, p - q), normalised: what replaces a token that does not stay, [..., vocabulary]."""
    left = (target - draft).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    # Nothing is left where p = q up to rounding; there a token is hardly ever replaced.
    return torch.where(total > 0, left / total, target)


def judge(
    target: Tensor, draft: Tensor, drafted: Tensor, limits: Tensor, points: Tensor
) -> tuple[Tensor, Tensor]:
    """How many of k drafted tokens stay, and the token that follows them.

    target: fp64 [rows, k + 1, vocabulary], the distribution at each drafted token's place and after
    all of them; draft: fp64 [rows, k, vocabulary]; drafted: int64 [rows, k]; limits: int64 [rows],
    as if only so many had been drafted for a row; points: fp64 [rows, k + 1, 2] uniform in [0, 1),
    at each place one that decides whether the token stays and one that draws another. Returns two
    int64 [rows]: 0 to `limits` tokens that stay, and the token after them.
    """
    stays = points[:, :-1, 0] < stay_probability(target[:, :-1], draft, drafted)
    accepted = _until_the_first_not(stays).minimum(limits)
    row = torch.arange(len(drafted), device=drafted.device)
    # After the last place there is no draft to subtract: all of p is left.
    proposed = torch.cat((draft, torch.zeros_like(target[:, :1])), dim=1)[row, accepted]
    proposed = proposed * (accepted < limits).unsqueeze(-1)
    left = replacement(target[row, accepted], proposed)
    return accepted, draw(left, points[row, accepted, 1])


def judge_greedy(best: Tensor, drafted: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """The same for greedy decoding, where a token stays when it is the target's most likely one.

    best: int64 [rows, k + 1] argmax of the target's logits; drafted and limits as for `judge`.
    """
    accepted = _until_the_first_not(best[:, :-1] == drafted).minimum(limits)
    return accepted, best.gather(-1, accepted.unsqueeze(-1)).squeeze(-1)


def _until_the_first_not(stays: Tensor) -> Tensor:
    return stays.long().cumprod(-1).sum(-1)
