"""What the scores read of a document, a mapping as a line of JSON gives it.

A field stands in the document or in its `metadata`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]
UNKNOWN = "unknown"
TITLE_CHARACTERS = 60


def field_of(document: Document, name: str) -> Any:
    """A field of the document or else of its metadata; None where neither has it."""
    value = document.get(name)
    return value if value is not None else (document.get("metadata") or {}).get(name)


def text_field(document: Document, name: str) -> str | None:
    """A field as text without white space around it; None where it is missing or empty."""
    value = field_of(document, name)
    return (str(value).strip() or None) if value is not None else None


def title_of(document: Document) -> str:
    """The document's `title`, or its first line that is not blank, cut to `TITLE_CHARACTERS`."""
    title = text_field(document, "title") or document["text"].lstrip().split("\n", 1)[0]
    return title[:TITLE_CHARACTERS].rstrip()
