"""Which stages read what which others make."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_soaes.stages.base import Plan


def makers_of(plan: Plan, plans: Mapping[str, Plan]) -> list[str]:
    """Names of the stages that make what `plan` reads, in the order of `plans`."""
    return [
        name
        for name, other in plans.items()
        if any(path.is_relative_to(other.directory) for path in plan.inputs.values())
    ]


def all_before(name: str, plans: Mapping[str, Plan]) -> list[str]:
    """Names of all stages whose results reach `name`, in the order of `plans`."""
    found: set[str] = set()
    open_ends = [name]
    while open_ends:
        new = set(makers_of(plans[open_ends.pop()], plans)) - found
        found |= new
        open_ends += new
    return [one for one in plans if one in found]
