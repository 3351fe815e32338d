"""Gates of a rehearsal: what they speak about must be measured, but no toy has to be good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megatron_soaes.recipe.gates import Gate

FARTHEST = 1e300
"""A bound that every number keeps; what is no number, or infinite, does not."""
RETAINED = "retained"


def is_about_ability(gate: Gate) -> bool:
    """Whether it asks what is kept of an ability, which an untrained model does not have."""
    return gate.metric.split(".")[-1] == RETAINED


def without_bounds(gates: Sequence[str]) -> list[str]:
    """The gates with bounds that any number keeps.

    Those about kept ability are left out: a base that knows no more than guessing has none to keep,
    and such a gate would rightly stop the run.
    """
    return [
        str(replace(gate, bound=-FARTHEST if gate.operator.startswith(">") else FARTHEST))
        for gate in map(Gate.parse, gates)
        if not is_about_ability(gate)
    ]
