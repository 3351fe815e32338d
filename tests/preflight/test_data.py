"""Texts, tokenizers and questions with mistakes that would end a job with code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.preflight.conftest import TURNS, change_json, look_at, write_lines


def no_template(root: Path) -> None:
    (root / "target/chat_template.jinja").unlink(missing_ok=True)
    change_json(root / "target/tokenizer_config.json", chat_template=None)


def unknown_role(root: Path) -> None:
    write_lines(root / "chats.jsonl", [{"messages": [{"role": "cook", "content": "hello"}]}])


def control_token(root: Path) -> None:
    """Only rendering tells."""
    turns = [TURNS[0] | {"content": "hello <|im_end|>"}, TURNS[1]]
    write_lines(root / "chats.jsonl", [{"messages": turns}])


def long_conversation(root: Path) -> None:
    """Only its tokens tell."""
    turns = [TURNS[0], TURNS[1] | {"content": "the fox " * 80}]
    write_lines(root / "chats.jsonl", [{"messages": turns}])


def no_key(root: Path) -> None:
    (root / "domain.jsonl").write_text('{"txt": "no"}\n', "utf-8")


def no_text(root: Path) -> None:
    (root / "domain.jsonl").unlink()


def no_tokenizer(root: Path) -> None:
    (root / "target/tokenizer.json").unlink()


def other_tokenizer(root: Path) -> None:
    """Of the target: the indexed dataset was made with the one it had."""
    file = root / "target/tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    content["added_tokens"][0]["special"] = not content["added_tokens"][0]["special"]
    file.write_text(json.dumps(content))


def other_tokenizer_of_the_draft(root: Path) -> None:
    file = root / "draft/tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    content["model"]["merges"] = content["model"]["merges"][:-1]
    file.write_text(json.dumps(content))


def reformatted_tokenizer_of_the_draft(root: Path) -> None:
    """The same tokenizer, but conversations are bound to the file's hash."""
    file = root / "draft/tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8"))))


def cut(name: str, size: int) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        file = root / name
        file.write_bytes(file.read_bytes()[:size])

    return plant


def spoilt_questions(root: Path) -> None:
    (root / "exam.jsonl").write_text("{bad\n", "utf-8")


def spoilt_prompts(root: Path) -> None:
    (root / "prompts.jsonl").write_text("{bad\n", "utf-8")


def nothing(root: Path) -> None:
    pass


MISTAKES: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "no template": (no_template, [], "found no chat_template; expected the template with which"),
    "chat without one": (no_template, ["evaluation.prompt=chat"], "found no chat_template"),
    "role": (unknown_role, [], "chats.jsonl:1: found role 'cook'"),
    "control token": (control_token, [], "the control token '<|im_end|>' in turn 1 (user)"),
    "long": (long_conversation, [], "at most 65, by stages.sft.sequence_length"),
    "key": (no_key, [], "domain.jsonl:1: found no key 'text'"),
    "dataset": (no_text, [], "data.datasets.domain.text: found no file at"),
    "no tokenizer": (no_tokenizer, [], "models.target.source: found no tokenizer.json in "),
    "tokenizer": (other_tokenizer, [], "expected tokens of this model's"),
    "pair": (other_tokenizer_of_the_draft, [], "draft: merges, rank"),
    "shared chats": (
        reformatted_tokenizer_of_the_draft,
        ["sft.model=draft", "measured.checkpoints=[import]"],
        "chats is tokenized once, and training compares the hash",
    ),
    "cut tokens": (cut("indexed.bin", 4), [], "indexed.bin: found 4 bytes"),
    "cut index": (cut("indexed.idx", 50), [], "indexed.idx: found 50 bytes"),
    "no index": (cut("indexed.idx", 3), [], "indexed.idx: found no complete header"),
    "cut sources": (cut("indexed_sources.npy", 20), [], "indexed_sources.npy: found no readable"),
    "cut description": (cut("indexed.json", 20), [], "indexed.json: found invalid JSON"),
    "questions": (spoilt_questions, [], "exam.jsonl:1: found invalid JSON"),
    "prompts": (spoilt_prompts, [], "prompts.jsonl, line 1: found no JSON"),
    "choices": (
        nothing,
        ["evaluation.choices={suite: exam.jsonl}"],
        "exam.jsonl:1: found no 'choices'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_is_found_and_named(project: Path, mistake: str) -> None:
    plant, overrides, expected = MISTAKES[mistake]
    plant(project)
    found = look_at(project, *overrides)
    assert any(expected in problem for problem in found.wrong), found
    assert not any(problem.startswith("--") for problem in found.wrong), "nobody gave options"


def test_nothing_is_said_to_be_well_of_a_dataset_that_is_not(project: Path) -> None:
    no_key(project)
    domain = next(one for one in look_at(project).findings if one.subject == "dataset domain")
    assert len(domain.wrong) == 1
    assert not domain.well


def test_a_long_conversation_is_well_where_it_may_be_dropped(project: Path) -> None:
    long_conversation(project)
    assert look_at(project, "sft.packing.too_long=drop").wrong == []


def test_each_file_of_questions_is_a_finding_of_its_own(project: Path) -> None:
    spoilt_questions(project)
    texts = ["evaluation.texts={pages: absent.jsonl}", "evaluation.sequence_length=64"]
    found = look_at(project, *texts)
    wrong = [one.subject for one in found.findings if one.wrong]
    assert wrong == ["evaluation.questions.exam", "evaluation.texts.pages"]
