"""Words that messages for people share."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 file", "1,200 files"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
