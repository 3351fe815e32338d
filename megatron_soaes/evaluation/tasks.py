"""Local task files: JSON lines of questions, of choices, or of plain text.

A file is read whole and checked before a model sees any of it; its hash goes into the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Generic, NoReturn, TypeVar

import orjson

from megatron_soaes import files
from megatron_soaes.errors import UserError

ROLES = ("system", "user", "assistant")
FOUND_CHARACTERS = 60

Message = Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """A question, or the beginning of a text, with a reference answer."""

    id: str
    messages: tuple[Message, ...]
    """The conversation up to the answer, for the model's chat template; ends with the user. Empty
    for a text."""
    prompt: str
    """The beginning of a text, which is completed as it stands; "" for a question."""
    answer: str
    facts: tuple[str, ...]
    """Values of which an answer must contain one; empty when the item is not scored for facts."""
    source: str
    """The part of the exam it belongs to; "" when the file names none."""


@dataclass(frozen=True)
class Choice:
    """A context with several continuations, of which one is right."""

    id: str
    context: str
    """The exact text before a choice."""
    choices: tuple[str, ...]
    """The exact texts that may follow, blanks included."""
    answer: int
    """Index of the right choice."""


@dataclass(frozen=True)
class Text:
    """A text whose likelihood is measured."""

    id: str
    text: str


Item = TypeVar("Item", Question, Choice, Text)


@dataclass(frozen=True)
class Task(Generic[Item]):
    """A task file."""

    path: Path
    sha256: str
    items: tuple[Item, ...]


def read_questions(path: Path) -> Task[Question]:
    """Lines of `{"question", "messages" or "prompt", "answer"}`; `"id"`, `"facts"`, `"source"`.

    A `prompt` is the beginning of a text and is completed as it stands, without a chat template.

    Raises UserError with file and line for anything else.
    """
    return _read(path, _question)


def read_choices(path: Path) -> Task[Choice]:
    """Lines of `{"question" or "context", "choices", "answer"}`; `"id"`, `"prefix"` if wanted.

    The context is `prefix` (such as worked examples, see `few_shot_prefix`) and then `context` as
    it stands, or `question` and a line end. `answer` is an index from 0 or a letter from A.
    Raises UserError with file and line for anything else.
    """
    return _read(path, _choice)


def read_texts(path: Path) -> Task[Text]:
    """Lines of `{"text"}`, with `"id"` if wanted. Raises UserError with file and line."""
    return _read(path, _text)


def few_shot_prefix(examples: Task[Choice], count: int) -> str:
    """The first `count` examples with their right choices, each followed by an empty line.

    Raises UserError when the file has fewer.
    """
    if count > len(examples.items):
        raise UserError(
            examples.path,
            f"{len(examples.items)} examples",
            f"at least {count}",
            "Ask for fewer examples or add some.",
        )
    shown = examples.items[:count]
    return "".join(f"{item.context}{item.choices[item.answer]}\n\n" for item in shown)


class _Line:
    """One line of a task file; what is wrong with it is said with its place."""

    def __init__(self, path: Path, number: int, content: bytes) -> None:
        self.where = f"{path}:{number}"
        self.number = number
        try:
            record = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            self.refuse(f"invalid JSON ({error})", "one JSON object on a line", "Correct the line.")
        if not isinstance(record, dict):
            self.refuse(_shown(record), "a JSON object", "Correct the line.")
        self.record: dict[str, Any] = record

    def refuse(self, found: str, expected: str, fix: str) -> NoReturn:
        raise UserError(self.where, found, expected, fix)

    def only(self, *keys: str) -> None:
        """Refuse keys that nothing would read: a misspelt one must not go unnoticed."""
        unknown = sorted(set(self.record) - set(keys))
        if unknown:
            self.refuse(
                f"key {unknown[0]!r}",
                f"only {', '.join(map(repr, keys))}",
                "Rename or remove it.",
            )

    def one_of(self, *keys: str) -> str:
        """The one of several keys that is there."""
        present = [key for key in keys if key in self.record]
        if len(present) != 1:
            found = " and ".join(map(repr, present)) or "none of them"
            expected = f"one of {', '.join(map(repr, keys))}"
            self.refuse(found, expected, "Give exactly one of them.")
        return present[0]

    def text(self, key: str, default: str | None = None, empty: bool = False) -> str:
        value = self.record.get(key, default)
        if not isinstance(value, str) or not (value.strip() or empty):
            self.refuse(self._value(key), f"text at {key!r}", "Write it.")
        return value

    def texts(self, key: str, at_least: int) -> tuple[str, ...]:
        value = self.record.get(key)
        good = isinstance(value, list) and len(value) >= at_least
        if not good or not all(isinstance(entry, str) and entry.strip() for entry in value or ()):
            self.refuse(
                self._value(key), f"a list of {at_least} or more texts at {key!r}", "Correct it."
            )
        return tuple(value or ())

    def id(self) -> str:
        """The item's `id`, or its line number."""
        value = self.record.get("id", self.number)
        if isinstance(value, bool) or not isinstance(value, str | int):
            self.refuse(self._value("id"), "text or a whole number at 'id'", "Correct it.")
        return str(value)

    def _value(self, key: str) -> str:
        return _shown(self.record[key]) if key in self.record else f"no {key!r}"


def _read(path: Path, parse: Callable[[_Line], Item]) -> Task[Item]:
    if not path.is_file():
        raise UserError(path, "no such file", "a task file of JSON lines", "Correct the path.")
    items: list[Item] = []
    places: dict[str, str] = {}
    for line in _lines(path):
        item = parse(line)
        if item.id in places:
            line.refuse(
                f"id {item.id!r} a second time",
                f"an id of its own (the first is at {places[item.id]})",
                "Give every item its own id, or none.",
            )
        places[item.id] = line.where
        items.append(item)
    if not items:
        raise UserError(path, "no items", "at least one JSON line", "Fill the file.")
    return Task(path, files.sha256_file(path), tuple(items))


def _lines(path: Path) -> Iterator[_Line]:
    with path.open("rb") as stream:
        for number, content in enumerate(stream, start=1):
            if content.strip():
                yield _Line(path, number, content)


def _question(line: _Line) -> Question:
    line.only("id", "question", "messages", "prompt", "answer", "facts", "source")
    messages: tuple[Message, ...] = ()
    match line.one_of("question", "messages", "prompt"):
        case "question":
            messages = ({"role": "user", "content": line.text("question")},)
        case "messages":
            messages = _messages(line)
    return Question(
        id=line.id(),
        messages=messages,
        prompt="" if messages else line.text("prompt"),
        answer=line.text("answer"),
        facts=line.texts("facts", 1) if "facts" in line.record else (),
        source=line.text("source", "", empty=True),
    )


def _messages(line: _Line) -> tuple[Message, ...]:
    value = line.record["messages"]
    expected = f"a list of {{'role': {' | '.join(ROLES)}, 'content': text}} at 'messages'"
    if not isinstance(value, list) or not value:
        line.refuse(_shown(value), expected, "Correct it.")
    for message in value:
        fields = message if isinstance(message, dict) else {}
        good = fields.keys() == {"role", "content"} and fields["role"] in ROLES
        if not good or not isinstance(fields["content"], str):
            line.refuse(_shown(message), expected, "Correct it.")
    if value[-1]["role"] != "user":
        line.refuse(
            f"a last message of the {value[-1]['role']}",
            "a conversation that ends with the user's question",
            "Move the expected answer to 'answer'.",
        )
    return tuple(value)


def _choice(line: _Line) -> Choice:
    line.only("id", "question", "context", "choices", "answer", "prefix")
    if line.one_of("question", "context") == "question":
        context = line.text("question") + "\n"
    else:
        context = line.text("context")
    choices = line.texts("choices", 2)
    answer = line.record.get("answer")
    if isinstance(answer, str) and len(answer) == 1:
        answer = ascii_uppercase.find(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        last = len(choices) - 1
        line.refuse(
            _shown(line.record.get("answer")),
            f"0 to {last} or A to {ascii_uppercase[last : last + 1] or 'Z'} at 'answer'",
            "Name the right choice.",
        )
    return Choice(line.id(), line.text("prefix", "", empty=True) + context, choices, answer)


def _text(line: _Line) -> Text:
    line.only("id", "text")
    return Text(line.id(), line.text("text"))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= FOUND_CHARACTERS else text[:FOUND_CHARACTERS] + "..."
