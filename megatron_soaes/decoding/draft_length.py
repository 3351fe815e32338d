"""How many tokens to draft: gain against measured costs, and a length that follows them.

The formulas are those of `losses/acceptance.py` with measured costs in place of one ratio.
Acceptance is taken to be equal and independent at every place, which real text is not: measure,
then decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_soaes.losses.acceptance import expected_tokens


@dataclass(frozen=True)
class PassCosts:
    """Measured seconds of one pass, batch and context as in use."""

    draft: float
    """Of the draft over one token."""
    target: tuple[float, ...]
    """Of the target over 1, 2, ... tokens."""

    @property
    def longest(self) -> int:
        """The longest draft whose cost is known."""
        return len(self.target) - 1

    @property
    def cost_ratio(self) -> float:
        """Time of a draft's token over time of a target's."""
        return self.draft / self.target[0]

    def round(self, length: int) -> float:
        """Seconds to draft and judge so many tokens."""
        return length * self.draft + self.target[length]

    def speedup(self, acceptance: float, length: int) -> float:
        """Expected speedup over one token a pass, judging at its measured cost."""
        return expected_tokens(acceptance, length) * self.target[0] / self.round(length)

    def best_length(self, acceptance: float) -> int:
        """The fastest draft length, 0 when none is faster than plain decoding."""
        return max(range(self.longest + 1), key=lambda length: self.speedup(acceptance, length))


def break_even(costs: PassCosts, length: int) -> float | None:
    """The acceptance at which a draft of this length costs no time; None if it always does."""
    if costs.speedup(1.0, length) < 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if costs.speedup(middle, length) < 1 else (low, middle)
    return high


class DraftLength(Protocol):
    """Says before every pass how many tokens to draft."""

    def next(self) -> int:
        """Tokens to draft for the next pass; 0 leaves the draft out."""
        ...

    def learn(self, judged: int, accepted: int) -> None:
        """Take in a pass: how many tokens were judged, that is accepted or the first not to be."""
        ...


class FixedLength:
    """Always the same."""

    def __init__(self, length: int) -> None:
        self._length = length

    def next(self) -> int:
        """See `DraftLength`."""
        return self._length

    def learn(self, judged: int, accepted: int) -> None:
        """See `DraftLength`."""


class AdaptiveLength:
    """The length with the best expected speedup at the acceptance of late; off when none pays.

    While it is off, every `PROBE_EVERY`-th pass drafts one token, so that text on which the draft
    does better is noticed.
    """

    MEMORY = 64
    """Judged tokens after which an observation counts 1/e."""
    PROBE_EVERY = 32
    START = (3.2, 4.0)
    """Accepted and judged tokens assumed before the first pass: speculation begins switched on."""

    def __init__(self, costs: PassCosts) -> None:
        self._costs = costs
        self._accepted, self._judged = self.START
        self._passes_off = 0

    @property
    def acceptance(self) -> float:
        """The running estimate."""
        return self._accepted / self._judged

    def next(self) -> int:
        """See `DraftLength`."""
        best = self._costs.best_length(self.acceptance)
        self._passes_off = 0 if best else self._passes_off + 1
        if self._passes_off == self.PROBE_EVERY:
            self._passes_off = 0
            return min(1, self._costs.longest)
        return best

    def learn(self, judged: int, accepted: int) -> None:
        """See `DraftLength`."""
        kept = max(0.0, 1 - judged / self.MEMORY)
        self._accepted = self._accepted * kept + accepted
        self._judged = self._judged * kept + judged


@dataclass(frozen=True)
class Round:
    """One target pass over a sequence."""

    drafted: int
    """Tokens proposed; those after a stop token or past the length limit do not count."""
    judged: int
    """Those accepted, and the first that was not."""
    accepted: int
    written: int
    """Tokens gained, a stop token included."""


@dataclass(frozen=True)
class Acceptance:
    """What became of drafted tokens."""

    acceptance_rate: float
    """Accepted over drafted tokens."""
    acceptance_of_judged: float
    """Accepted over judged tokens: the alpha of the formulas above."""
    acceptance_length_without_bonus: float
    """Accepted tokens a target pass."""
    acceptance_length_with_bonus: float
    """Tokens gained a target pass: the accepted ones and the target's own."""
    by_position: tuple[float, ...]
    """Of the tokens drafted at place 1, 2, ..., the share that was accepted."""
    target_passes: int


def acceptance_of(rounds: Sequence[Round]) -> Acceptance:
    """Summed over rounds; rates are 0 where nothing was drafted."""
    drafted, judged = sum(r.drafted for r in rounds), sum(r.judged for r in rounds)
    accepted, passes = sum(r.accepted for r in rounds), max(len(rounds), 1)
    places = range(max((r.drafted for r in rounds), default=0))
    return Acceptance(
        acceptance_rate=accepted / max(drafted, 1),
        acceptance_of_judged=accepted / max(judged, 1),
        acceptance_length_without_bonus=accepted / passes,
        acceptance_length_with_bonus=sum(r.written for r in rounds) / passes,
        by_position=tuple(
            sum(r.accepted > place for r in rounds) / sum(r.drafted > place for r in rounds)
            for place in places
        ),
        target_passes=len(rounds),
    )
