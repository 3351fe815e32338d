"""AdaSPEC's selection of positions."""

from __future__ import annotations

import pytest
import torch

from megatron_soaes.errors import UserError
from megatron_soaes.losses.selection import most_learnable

LOSSES = torch.tensor([[3.0, 1.0, torch.nan], [2.0, 5.0, 0.5]])
REFERENCE = torch.tensor([[1.0, 0.9, 0.0], [0.2, 4.9, 0.6]])
WEIGHTS = torch.tensor([[0.5, 1.0, 0.0], [1.0, 1.0, 1.0]])


def test_the_largest_gaps_to_the_reference_are_kept_with_their_weights() -> None:
    """Gaps 2.0, 0.1, none, 1.8, 0.1, -0.1: the hard token with loss 5 is left out."""
    found = most_learnable(LOSSES, REFERENCE, WEIGHTS, share=0.4)
    assert found.tolist() == [[0.5, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_the_number_kept_is_a_share_of_the_positions_with_weight() -> None:
    for share, count in ((0.01, 1), (0.41, 3), (1.0, 5)):
        found = most_learnable(LOSSES, REFERENCE, WEIGHTS, share)
        assert int(found.gt(0).sum()) == count


def test_no_position_with_weight_is_no_error() -> None:
    nothing = torch.zeros_like(WEIGHTS)
    assert not most_learnable(LOSSES, REFERENCE, nothing, 0.5).any()


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_another_share_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        most_learnable(LOSSES, REFERENCE, WEIGHTS, share)
