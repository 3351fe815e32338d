"""Which positions a draft of small capacity should learn from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_soaes.errors import UserError


def most_learnable(
    losses: Tensor, reference_losses: Tensor, loss_weights: Tensor, share: float
) -> Tensor:
    """`loss_weights` with all but a share of the positions set to 0.

    The selection of AdaSPEC (Hu et al., arXiv 2510.19779): kept are the positions where the
    student's divergence from the target exceeds that of a reference, a draft of the same size
    already distilled by forward KL, by most. There a model of this size can still learn something;
    where the reference fails as well the tokens are too hard. All tensors have one shape; of the
    positions with weight, ceil(share * count) are kept, the first of equals first. The choice is
    made within the positions given. UserError for a share outside (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise UserError(
            "share", str(share), "a number above 0 and at most 1", "Choose another share."
        )
    weighed = loss_weights.reshape(-1) > 0
    gaps = (losses.detach() - reference_losses.detach()).reshape(-1)
    order = gaps.masked_fill(~weighed, -torch.inf).argsort(descending=True, stable=True)
    chosen = order[: math.ceil(share * int(weighed.sum()))]
    kept = torch.zeros_like(weighed).index_fill_(0, chosen, True)
    return torch.where(kept.view(loss_weights.shape), loss_weights, 0.0)
