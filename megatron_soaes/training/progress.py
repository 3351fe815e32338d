"""What the held-out losses of a run say: which checkpoint is best, and which set overfits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Losses = Mapping[str, float]
"""Held-out loss in nats by set."""

RISES = 2
"""So many validations in a row must show a rise before it is called one."""


@dataclass(frozen=True)
class BestCheckpoint:
    """The step with the lowest loss of the set that decides."""

    iteration: int
    loss: float

    @staticmethod
    def of(iteration: int, loss: float, before: BestCheckpoint | None) -> BestCheckpoint | None:
        """The best after one more validation; a loss that is no number is never best."""
        better = math.isfinite(loss) and (before is None or loss < before.loss)
        return BestCheckpoint(iteration, loss) if better else before


def overfitting(history: Sequence[Losses]) -> dict[str, float]:
    """Sets that overfit, with how far each is above its lowest loss.

    history: every validation so far, oldest first. A set overfits when its loss has risen in each
    of the last `RISES` validations while the mean of the other sets fell over them; of a single set
    its own rise is enough. A training blend gives such a source too much (mSFT, arXiv 2603.21606).
    """
    if len(history) <= RISES:
        return {}
    recent = history[-RISES - 1 :]
    found = {}
    for name in recent[-1]:
        losses = [losses[name] for losses in recent]
        others = [_mean_without(losses, name) for losses in (recent[0], recent[-1])]
        rises = all(later > earlier for earlier, later in pairwise(losses))
        if rises and (others[0] is None or others[1] is None or others[1] < others[0]):
            found[name] = losses[-1] - min(losses[name] for losses in history)
    return found


def _mean_without(losses: Losses, name: str) -> float | None:
    rest = [loss for other, loss in losses.items() if other != name]
    return sum(rest) / len(rest) if rest else None
