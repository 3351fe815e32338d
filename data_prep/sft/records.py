"""One record of a conversation file: OpenAI messages, ShareGPT conversations or Alpaca fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_prep.documents import json_type, shorten
from data_prep.sft.problems import Problem, RecordError

Format = Literal["messages", "sharegpt", "alpaca"]
FormatChoice = Literal["auto", "messages", "sharegpt", "alpaca"]
TrainOn = Literal["all", "last"]
Record = dict[str, object]

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}
NEXT_ROLES = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""The roles that may follow a role; None is the start."""
RECORD_FIELDS = ("tools", "functions")
MESSAGE_FIELDS = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""What a template may write into the text beside the contents."""


@dataclass(frozen=True)
class Turn:
    """One message; `trained` only matters for an assistant's."""

    role: str
    content: str
    trained: bool = True


@dataclass(frozen=True)
class Conversation:
    """A record whose roles are in order."""

    turns: tuple[Turn, ...]
    weight: float
    source: str

    def name(self, position: int) -> str:
        """What a message calls the turn: the system prompt is not counted."""
        if self.turns[position].role == "system":
            return "the system prompt"
        number = position + (self.turns[0].role != "system")
        return f"turn {number} ({self.turns[position].role})"

    def trained(self, train_on: TrainOn) -> list[int]:
        """The positions of the turns to train on; with "last" of the last turn or of none."""
        first = len(self.turns) - 1 if train_on == "last" else 0
        return [
            position
            for position, turn in enumerate(self.turns)
            if position >= first and turn.role == "assistant" and turn.trained
        ]


@dataclass(frozen=True)
class RecordReader:
    """What the options say about reading a record."""

    format: FormatChoice
    system: str | None
    """Takes the place of every system prompt."""
    weight_key: str | None
    source_key: str | None
    source: str
    """The source of all records, unless there is a `source_key`."""
    tool_role: bool
    """Whether the chat template writes turns of role "tool"."""

    def read(self, record: Record) -> Conversation:
        """Raises `RecordError` when the record is no conversation in order."""
        turns = list(self._turns(record))
        if self.system is not None:
            has_system = bool(turns) and turns[0].role == "system"
            turns[: int(has_system)] = [Turn("system", self.system)]
        conversation = Conversation(tuple(turns), self._weight(record), self._source(record))
        self._check_order(conversation)
        return conversation

    def _turns(self, record: Record) -> Iterator[Turn]:
        kind = self.format if self.format != "auto" else _recognise(record)
        _refuse_fields(record, RECORD_FIELDS, "the record")
        if kind == "messages":
            yield from _messages(record)
        elif kind == "sharegpt":
            yield from _sharegpt(record)
        else:
            yield from _alpaca(record)

    def _check_order(self, conversation: Conversation) -> None:
        turns = conversation.turns
        if not any(turn.role == "assistant" for turn in turns):
            raise RecordError(Problem.NO_ANSWER, "no assistant turn")
        previous: str | None = None
        for position, turn in enumerate(turns):
            name = conversation.name(position)
            if turn.role == "tool" and not self.tool_role:
                found = f"{name}, which the chat template does not write"
                raise RecordError(Problem.TOOL_ROLE, found)
            if turn.role not in NEXT_ROLES[previous]:
                found = f"{name} after {previous or 'nothing'}"
                raise RecordError(Problem.WRONG_ORDER, found)
            if turn.role != "system" and not turn.content.strip():
                raise RecordError(Problem.EMPTY_CONTENT, f"no text in {name}")
            previous = turn.role
        if previous != "assistant":
            raise RecordError(Problem.WRONG_ORDER, f"{previous} at the end")

    def _weight(self, record: Record) -> float:
        if self.weight_key is None:
            return 1.0
        value = record.get(self.weight_key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            limits = np.finfo(np.float32)
            if float(limits.tiny) <= value <= float(limits.max):
                return float(value)
        raise RecordError(Problem.BAD_WEIGHT, f"{value!r} at {self.weight_key!r}")

    def _source(self, record: Record) -> str:
        if self.source_key is None:
            return self.source
        value = record.get(self.source_key)
        if not isinstance(value, str) or not value:
            raise RecordError(Problem.BAD_SOURCE, f"{value!r} at {self.source_key!r}")
        return value


def _recognise(record: Record) -> Format:
    present = {key for key, value in record.items() if value is not None}
    kinds: list[Format] = []
    if "messages" in present:
        kinds.append("messages")
    if "conversations" in present:
        kinds.append("sharegpt")
    if {"instruction", "output"} <= present:
        kinds.append("alpaca")
    if not kinds:
        found = f"the keys {shorten(', '.join(sorted(present))) or 'of nothing'}"
        raise RecordError(Problem.UNKNOWN_FORMAT, found)
    if len(kinds) > 1:
        raise RecordError(Problem.AMBIGUOUS_FORMAT, f"the keys of {' and '.join(kinds)}")
    return kinds[0]


def _messages(record: Record) -> Iterator[Turn]:
    for place, message in _objects(record, "messages"):
        role = _text(message, "role", place)
        if role == "function":
            role = "tool"
        if role not in NEXT_ROLES:
            raise RecordError(Problem.UNKNOWN_ROLE, f"role {role!r} in {place}")
        weight = message.get("weight")
        is_flag = weight in (0, 1) and not isinstance(weight, bool)
        if weight is not None and not (is_flag and role == "assistant"):
            raise RecordError(Problem.BAD_WEIGHT, f"weight {weight!r} at role {role} in {place}")
        yield Turn(role, _text(message, "content", place), trained=weight != 0)


def _sharegpt(record: Record) -> Iterator[Turn]:
    yield from _system(record)
    for place, message in _objects(record, "conversations"):
        speaker = _text(message, "from", place)
        if speaker not in SHAREGPT_ROLES:
            raise RecordError(Problem.UNKNOWN_ROLE, f"from {speaker!r} in {place}")
        yield Turn(SHAREGPT_ROLES[speaker], _text(message, "value", place))


def _alpaca(record: Record) -> Iterator[Turn]:
    yield from _system(record)
    history = record.get("history") or []
    if not isinstance(history, list):
        raise RecordError(Problem.WRONG_SHAPE, f"a JSON {json_type(history)} at 'history'")
    for number, pair in enumerate(history, start=1):
        texts = pair if isinstance(pair, list) else []
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            found = f"no pair of strings as item {number} of 'history'"
            raise RecordError(Problem.WRONG_SHAPE, found)
        yield Turn("user", texts[0])
        yield Turn("assistant", texts[1])
    question = [_text(record, "instruction", "the record")]
    if record.get("input") is not None:
        question.append(_text(record, "input", "the record"))
    yield Turn("user", "\n".join(text for text in question if text))
    yield Turn("assistant", _text(record, "output", "the record"))


def _system(record: Record) -> Iterator[Turn]:
    if record.get("system"):
        yield Turn("system", _text(record, "system", "the record"))


def _objects(record: Record, key: str) -> Iterator[tuple[str, Record]]:
    items = record.get(key)
    if not isinstance(items, list):
        raise RecordError(Problem.WRONG_SHAPE, f"a JSON {json_type(items)} at {key!r}")
    for number, item in enumerate(items, start=1):
        place = f"item {number} of {key!r}"
        if not isinstance(item, dict):
            raise RecordError(Problem.WRONG_SHAPE, f"a JSON {json_type(item)} as {place}")
        _refuse_fields(item, MESSAGE_FIELDS, place)
        yield place, item


def _text(record: Record, key: str, place: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        found = f"a JSON {json_type(value)} at {key!r}" if key in record else f"no {key!r}"
        raise RecordError(Problem.WRONG_SHAPE, f"{found} in {place}")
    return value


def _refuse_fields(record: Record, names: tuple[str, ...], place: str) -> None:
    for field in names:
        if record.get(field):
            raise RecordError(Problem.STRUCTURED_FIELD, f"{field!r} in {place}")
