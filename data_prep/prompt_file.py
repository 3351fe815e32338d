"""Prompts in a file: JSON lines of texts or conversations, or a text a line."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_soaes.errors import UserError
from megatron_soaes.wording import unreadable

Conversation = list[dict[str, str]]
"""Turns with `role` and `content`."""
Question = str | Conversation


def read_questions(file: Path) -> list[Question]:
    """Every prompt of a file, in its order.

    A `.jsonl` file has an object a line, with `prompt` or `text` (a text) or `messages` (a
    conversation); any other file a text a line. Empty lines are left out. Raises UserError for a
    file or a line that cannot be read, and for a file without prompts.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            file, f"no readable text ({unreadable(error)})", "prompts, UTF-8", "Check the path."
        ) from None
    as_json = file.suffix == ".jsonl"
    questions = [
        _question(line, f"{file}, line {number}") if as_json else line
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not questions:
        raise UserError(file, "no prompts", "one a line", "Add prompts to the file.")
    return questions


def _question(line: str, where: str) -> Question:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise UserError(where, f"no JSON ({error})", "an object", "Correct the line.") from None
    fields = fields if isinstance(fields, dict) else {}
    messages = fields.get("messages")
    for name in ("prompt", "text"):
        if isinstance(fields.get(name), str):
            return str(fields[name])
    if isinstance(messages, list) and messages and all(_is_turn(turn) for turn in messages):
        return messages
    raise UserError(
        where, f"fields {sorted(fields)}",
        "`prompt` or `text`, a text, or `messages`, a list of objects with `role` and `content`",
        "Correct the line.",
    )  # fmt: skip


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and all(
        isinstance(turn.get(field), str) for field in ("role", "content")
    )
