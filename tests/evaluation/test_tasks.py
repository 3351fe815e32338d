"""Local task files and what is said about a bad line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.tasks import (
    Task,
    few_shot_prefix,
    read_choices,
    read_questions,
    read_texts,
)

QUESTION = {"question": "成立于哪年？", "answer": "成立于1998年。"}
CHOICE = {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_questions_are_read_with_all_that_belongs_to_them(tmp_path: Path) -> None:
    conversation = [{"role": "system", "content": "简短"}, {"role": "user", "content": "哪年？"}]
    file = lines(
        tmp_path / "exam.jsonl",
        QUESTION,
        {"id": "b", "messages": conversation, "answer": "1998", "facts": ["1998"], "source": "B"},
    )

    task = read_questions(file)

    assert task.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    first, second = task.items
    assert (first.id, first.facts, first.source) == ("1", (), "")
    assert first.messages == ({"role": "user", "content": "成立于哪年？"},)
    assert (second.id, second.facts, second.source) == ("b", ("1998",), "B")
    assert list(second.messages) == conversation


def test_blank_lines_count_but_hold_nothing(tmp_path: Path) -> None:
    file = tmp_path / "exam.jsonl"
    file.write_text("\n" + json.dumps(QUESTION) + "\n\n")
    assert [item.id for item in read_questions(file).items] == ["2"]


def test_choices_take_an_index_or_a_letter_and_keep_their_text_as_it_stands(tmp_path: Path) -> None:
    task = read_choices(
        lines(
            tmp_path / "choices.jsonl",
            CHOICE,
            {"id": 7, "context": "首都是", "choices": [" 北京", " 上海"], "answer": "A"},
            {**CHOICE, "prefix": "1 + 1?\n2\n\n", "answer": "B"},
        )
    )

    assert [item.answer for item in task.items] == [1, 0, 1]
    assert [item.context for item in task.items] == ["2 + 2?\n", "首都是", "1 + 1?\n2\n\n2 + 2?\n"]
    assert task.items[1].choices == (" 北京", " 上海")
    assert task.items[1].id == "7"


def test_examples_become_a_prefix(tmp_path: Path) -> None:
    examples = read_choices(lines(tmp_path / "dev.jsonl", CHOICE, {**CHOICE, "answer": 0}))
    assert few_shot_prefix(examples, 2) == "2 + 2?\n4\n\n2 + 2?\n3\n\n"
    assert few_shot_prefix(examples, 0) == ""
    with pytest.raises(UserError, match=r"dev.jsonl: found 2 examples; expected at least 3"):
        few_shot_prefix(examples, 3)


def test_the_beginning_of_a_text_has_no_turns(tmp_path: Path) -> None:
    file = lines(tmp_path / "documents.jsonl", {"prompt": "国资委成立于", "answer": "2003年"})
    (item,) = read_questions(file).items
    assert (item.prompt, item.messages) == ("国资委成立于", ())


def test_texts_are_read_whole(tmp_path: Path) -> None:
    task = read_texts(lines(tmp_path / "text.jsonl", {"text": " 国资\n"}, {"id": "x", "text": "b"}))
    assert [(item.id, item.text) for item in task.items] == [("1", " 国资\n"), ("x", "b")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answer": "a"}, "found none of them; expected one of 'question', 'messages', 'prompt'"),
        ({**QUESTION, "messages": []}, "found 'question' and 'messages'"),
        ({"prompt": " ", "answer": "a"}, "expected text at 'prompt'"),
        ({"question": "q"}, "found no 'answer'; expected text at 'answer'"),
        ({**QUESTION, "answer": " "}, "found ' '"),
        ({**QUESTION, "answer": 3}, "found 3; expected text at 'answer'"),
        ({**QUESTION, "fact": "1998"}, "found key 'fact'; expected only 'id', 'question'"),
        ({**QUESTION, "facts": "1998"}, "found '1998'; expected a list of 1 or more texts"),
        ({**QUESTION, "facts": []}, r"found \[\]"),
        ({**QUESTION, "facts": [""]}, r"found \[''\]"),
        ({**QUESTION, "id": True}, "found True; expected text or a whole number at 'id'"),
        ({**QUESTION, "source": 1}, "expected text at 'source'"),
        ({"messages": "q", "answer": "a"}, "found 'q'; expected a list of"),
        ({"messages": [{"role": "bot", "content": "q"}], "answer": "a"}, "'role': 'bot'"),
        (
            {"messages": [{"role": "assistant", "content": "a"}], "answer": "a"},
            "found a last message of the assistant; expected a conversation that ends with the",
        ),
        (["q"], r"found \['q'\]; expected a JSON object"),
    ],
)
def test_a_bad_question_is_refused_with_its_line(
    tmp_path: Path, record: object, message: str
) -> None:
    file = lines(tmp_path / "exam.jsonl", QUESTION, record)
    with pytest.raises(UserError, match=rf"exam.jsonl:2: .*{message}"):
        read_questions(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "found 2; expected 0 to 1 or A to B at 'answer'"),
        ({"answer": -1}, "found -1"),
        ({"answer": "C"}, "found 'C'"),
        ({"answer": "4"}, "found '4'"),
        ({"answer": True}, "found True"),
        ({"answer": None}, "found None"),
        ({"choices": ["3"]}, "a list of 2 or more texts at 'choices'"),
        ({"choices": ["3", ""]}, "a list of 2 or more texts at 'choices'"),
        ({"context": "c"}, "found 'question' and 'context'"),
        ({"option": "c"}, "found key 'option'"),
    ],
)
def test_a_bad_choice_is_refused_with_its_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = lines(tmp_path / "choices.jsonl", {**CHOICE, **change})
    with pytest.raises(UserError, match=rf"choices.jsonl:1: .*{message}"):
        read_choices(file)


@pytest.mark.parametrize("read", [read_questions, read_choices, read_texts])
def test_bad_files_are_refused(tmp_path: Path, read: Callable[[Path], Task[Any]]) -> None:
    file = tmp_path / "task.jsonl"
    with pytest.raises(UserError, match="no such file"):
        read(file)
    file.write_text("\n")
    with pytest.raises(UserError, match="no items"):
        read(file)
    file.write_text('{"text": ')
    with pytest.raises(UserError, match=r"task.jsonl:1: found invalid JSON"):
        read(file)


def test_two_items_with_one_id_are_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "text.jsonl", {"id": "a", "text": "1"}, {"id": "a", "text": "2"})
    with pytest.raises(UserError, match=r":2: found id 'a' a second time; .* at .*:1\)"):
        read_texts(file)


def test_a_text_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r":1: found no 'text'"):
        read_texts(lines(tmp_path / "text.jsonl", {"id": "a"}))
