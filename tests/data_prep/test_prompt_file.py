"""Prompts in a file: texts and conversations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.prompt_file import read_questions
from megatron_soaes.errors import UserError

TURNS = [{"role": "user", "content": "Why?"}]


def test_json_lines_hold_prompts_texts_and_conversations(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "One"}, {"text": "Two"}, {"messages": TURNS}]
    file.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read_questions(file) == ["One", "Two", TURNS]


def test_any_other_file_holds_a_text_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text('One\n\n{"prompt": "Two"}\n', encoding="utf-8")
    assert read_questions(file) == ["One", '{"prompt": "Two"}']


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\n", "no prompts"),
        (b'{"prompt": "One"}\n{"text": 1}\n', r"line 2: found fields \['text'\]"),
        (b"[]\n", r"line 1: found fields \[\]"),
        (b"{\n", "line 1: found no JSON"),
        (b'{"messages": [{"role": "user"}]}\n', "line 1: found fields"),
        (b"\xff\n", "no readable text"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=found):
        read_questions(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt: found no readable text \(no such file"):
        read_questions(tmp_path / "nowhere.txt")
