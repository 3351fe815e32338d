"""Words that messages for people share."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 file", "1,200 files"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def unreadable(error: OSError | UnicodeError) -> str:
    """Why a file cannot be read, without its name: "no such file or directory"."""
    told = error.strerror if isinstance(error, OSError) else None
    return told.lower() if told else str(error)
