"""What is wrong with a checkpoint, one finding at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A rule of the format that is broken."""

    where: str
    """The file, with the tensor or the field."""
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; expected {self.expected}"
