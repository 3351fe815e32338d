"""What a rehearsal changes in a recipe, field by field, and how that is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron_soaes.recipe.section import Section

AnySection = TypeVar("AnySection", bound=Section)
LONGEST_SHOWN = 90
"""Characters of a value in a report."""


@dataclass(frozen=True)
class Change:
    """One field of the recipe that the rehearsal sets otherwise."""

    section: str
    """Where the field is: `stages.cpt`, `models.target`."""
    field: str
    wanted: str
    used: str


class Changes:
    """Every change, in the order in which it was made."""

    def __init__(self) -> None:
        self.made: list[Change] = []

    def set(
        self, section: AnySection, where: str, within: str = "", /, **values: Any
    ) -> AnySection:
        """A copy of `section`, the part `within` of `where`, with these fields.

        Those that differ are remembered. A field that has its value already stays as it is, unset
        if it was: rules tell what was asked for from what was not.
        """
        new = {name: value for name, value in values.items() if getattr(section, name) != value}
        for name, value in new.items():
            field = f"{within}.{name}" if within else name
            self.made.append(Change(where, field, shown(getattr(section, name)), shown(value)))
        return section.model_copy(update=new) if new else section


def with_parts(section: AnySection, **parts: Any) -> AnySection:
    """A copy of `section` with the parts that are not the ones it has."""
    new = {name: part for name, part in parts.items() if getattr(section, name) is not part}
    return section.model_copy(update=new)


def shown(value: object) -> str:
    """A value of a recipe in one short line."""
    match value:
        case None:
            text = "none"
        case bool():
            text = str(value).lower()
        case Section():
            given = {name: getattr(value, name) for name in sorted(value.model_fields_set)}
            text = ", ".join(f"{name} {shown(one)}" for name, one in given.items()) or "defaults"
        case Path():
            text = str(value)
        case list() | tuple():
            text = ", ".join(map(shown, value)) or "none"
        case _:
            text = str(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


def grouped(changes: Iterable[Change]) -> dict[tuple[str, str, str], list[str]]:
    """The sections in which a field changed in the same way, by (field, wanted, used)."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in changes:
        groups.setdefault((one.field, one.wanted, one.used), []).append(one.section)
    return groups
