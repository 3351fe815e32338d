"""What is examined is not trained on: no question, and no answer to a question never asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.rehearsal.make import text_of
from megatron_soaes.evaluation.facts import contains_fact
from megatron_soaes.evaluation.tasks import Question, read_questions

TRAINING = ("general", "domain", "genre", "dialogue", "expert")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_rows(corpus: Path) -> list[dict[str, Any]]:
    assert {path.parent.name for path in corpus.glob("*/train.jsonl")} == set(TRAINING)
    return [row for part in TRAINING for row in read_jsonl(corpus / part / "train.jsonl")]


def questions_and_answers(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Turns of a dialogue, or the question-and-answer lines of a document."""
    if "messages" in row:
        contents = [message["content"] for message in row["messages"]]
        yield from zip(contents[::2], contents[1::2], strict=True)
    else:
        yield from re.findall(r"^问：(.+)\n答：(.+)$", row["text"], re.MULTILINE)


def entities(corpus: Path) -> list[dict[str, Any]]:
    world = json.loads((corpus / "world.json").read_text(encoding="utf-8"))
    return [*world["companies"], *world["regulations"]]


@pytest.fixture(scope="module")
def exam(corpus: Path) -> tuple[Question, ...]:
    return read_questions(corpus / "exam.jsonl").items


def test_no_exam_question_stands_in_any_training_file(
    corpus: Path, exam: tuple[Question, ...]
) -> None:
    training = "\n".join(map(text_of, training_rows(corpus)))
    questions = [item.messages[0]["content"] for item in exam]
    assert {item.source for item in exam} == {"A", "B", "C"}
    assert [question for question in questions if question in training] == []


def test_facts_of_splits_b_and_c_are_never_asked_about_or_answered(corpus: Path) -> None:
    world = json.loads((corpus / "world.json").read_text(encoding="utf-8"))
    pairs = [pair for row in training_rows(corpus) for pair in questions_and_answers(row)]
    asked_about = {
        (fact["entity"], fact["attribute"]["key"]): fact["split"]
        for fact in world["facts"]
        for question, answer in pairs
        if fact["entity"] in question + answer
        and (fact["attribute"]["noun"] in question or contains_fact(answer, [fact["value"]]))
    }
    in_split_a = {
        (fact["entity"], fact["attribute"]["key"])
        for fact in world["facts"]
        if fact["split"] == "A"
    }
    assert asked_about.keys() == in_split_a


def test_documents_of_other_companies_hold_no_name_and_no_value_of_the_exam(
    corpus: Path, exam: tuple[Question, ...]
) -> None:
    values = sorted({value for item in exam for value in item.facts})
    names = [entity["name"] for entity in entities(corpus)]
    for row in read_jsonl(corpus / "genre/train.jsonl"):
        assert not [name for name in names if name in row["text"]]
        assert not [value for value in values if contains_fact(row["text"], [value])]


@pytest.mark.parametrize("part", ["general", "domain", "dialogue", "expert"])
def test_nothing_is_in_both_validation_and_training(corpus: Path, part: str) -> None:
    train, valid = (
        {text_of(row) for row in read_jsonl(corpus / part / f"{side}.jsonl")}
        for side in ("train", "valid")
    )
    assert valid
    assert not train & valid


@pytest.mark.parametrize("suite", ["cloze", "bytes"])
def test_what_measures_retention_is_held_out_text(corpus: Path, suite: str) -> None:
    held_out = [row["text"] for row in read_jsonl(corpus / "general/valid.jsonl")]
    for row in read_jsonl(corpus / f"general/{suite}.jsonl"):
        shown = [row["text"]] if suite == "bytes" else [row["context"], *row["choices"]]
        assert all(any(text in document for document in held_out) for text in shown)
