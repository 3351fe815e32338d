"""What every rule that changes a text returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Edited:
    """A text after an edit, and how often each kind of change was made in it.

    `counts` holds only the kinds that occurred; it is empty for a text left as it was.
    """

    text: str
    counts: Mapping[str, int]
