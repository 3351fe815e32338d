"""Prompts in a file: JSON lines of texts or conversations, or a text a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_soaes.decoding.prompts import render_prompt
from megatron_soaes.errors import UserError


def read_prompts(file: Path, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of every prompt of a file.

    A `.jsonl` file has an object a line, with `prompt` (a text) or `messages` (a conversation, for
    the chat template); any other file a text a line. Empty lines are left out. Raises UserError for
    a file or a line that cannot be read, and for a file without prompts.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            file, f"no readable text ({error})", "prompts, UTF-8", "Check the path."
        ) from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            question = _question(line, f"{file}, line {number}") if _is_json(file) else line
            prompts.append(render_prompt(tokenizer, question))
    if not prompts:
        raise UserError(file, "no prompts", "one a line", "Add prompts to the file.")
    return prompts


def _is_json(file: Path) -> bool:
    return file.suffix == ".jsonl"


def _question(line: str, where: str) -> Any:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise UserError(where, f"no JSON ({error})", "an object", "Correct the line.") from None
    fields = fields if isinstance(fields, dict) else {}
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(prompt, str):
        return prompt
    if isinstance(messages, list) and messages and all(_is_turn(turn) for turn in messages):
        return messages
    raise UserError(
        where, f"fields {sorted(fields)}",
        "`prompt`, a text, or `messages`, a list of objects with `role` and `content`",
        "Correct the line.",
    )  # fmt: skip


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and all(
        isinstance(turn.get(field), str) for field in ("role", "content")
    )
