"""The forms of records that are taken, and why others are not."""

from __future__ import annotations

from typing import Any

import pytest

from data_prep.sft.problems import RULES, Problem, RecordError
from data_prep.sft.records import Conversation, FormatChoice, RecordReader
from tests.data_prep.sft_material import chat


def read(record: dict[str, Any], form: FormatChoice = "auto", **options: Any) -> Conversation:
    settings = {
        **{"system": None, "weight_key": None, "source_key": None, "source": "all"},
        **{"tool_role": False, **options},
    }
    return RecordReader(form, **settings).read(record)


def turns(record: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in read(record, **options).turns]


SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "Q"},
        {"from": "gpt", "value": "A"},
    ]
}
ALPACA = {"instruction": "Translate.", "input": "你好", "output": "Hello."}


def test_three_forms_are_told_by_their_keys() -> None:
    expected = [("system", "S"), ("user", "Q"), ("assistant", "A")]
    assert turns(chat("Q", "A", system="S")) == expected
    assert turns(SHAREGPT) == expected
    assert turns({"conversations": SHAREGPT["conversations"][1:], "system": "S"}) == expected
    assert turns({"instruction": "Q", "output": "A", "system": "S"}) == expected


def test_alpaca_fields() -> None:
    answer = ("assistant", "Hello.")
    assert turns(ALPACA) == [("user", "Translate.\n你好"), answer]
    assert turns({**ALPACA, "input": ""}) == [("user", "Translate."), answer]
    assert turns({**ALPACA, "input": None, "system": ""}) == [("user", "Translate."), answer]
    assert turns({**ALPACA, "instruction": ""}) == [("user", "你好"), answer]
    earlier = turns({**ALPACA, "history": [["Hi", "Hi!"]]})[:2]
    assert earlier == [("user", "Hi"), ("assistant", "Hi!")]


def test_a_form_can_be_asked_for() -> None:
    both = {**ALPACA, **chat("Q", "A")}
    assert turns(both, form="messages") == [("user", "Q"), ("assistant", "A")]
    assert turns(both, form="alpaca")[1] == ("assistant", "Hello.")
    assert turns({**ALPACA, "messages": None})[1] == ("assistant", "Hello.")


def test_other_fields_are_passed_over() -> None:
    record = chat("Q", "A", id=7, tools=[], reasoning="as a label")
    record["messages"][0] |= {"name": "Ann", "tool_calls": None}
    assert turns(record) == [("user", "Q"), ("assistant", "A")]


def test_an_empty_system_prompt_is_one() -> None:
    assert turns(chat("Q", "A", system=""))[0] == ("system", "")


def test_weights_and_sources() -> None:
    record = chat("Q", "A", quality=0.5, kind="法律")
    conversation = read(record, weight_key="quality", source_key="kind")
    assert (conversation.weight, conversation.source) == (0.5, "法律")
    assert (read(record).weight, read(record).source) == (1.0, "all")


def message(**fields: object) -> dict[str, Any]:
    """A conversation with one field or more of its answer changed."""
    return {"messages": [chat("Q")["messages"][0], {"role": "assistant", **fields}]}


REFUSED: list[tuple[dict[str, Any], Problem, str]] = [
    ({"text": "x", "id": 1}, Problem.UNKNOWN_FORMAT, "the keys id, text"),
    ({"instruction": "Q"}, Problem.UNKNOWN_FORMAT, "the keys instruction"),
    ({}, Problem.UNKNOWN_FORMAT, "the keys of nothing"),
    ({**ALPACA, **SHAREGPT}, Problem.AMBIGUOUS_FORMAT, "the keys of sharegpt and alpaca"),
    ({"messages": "hello"}, Problem.WRONG_SHAPE, "a JSON string at 'messages'"),
    ({"messages": ["hello"]}, Problem.WRONG_SHAPE, "a JSON string as item 1 of 'messages'"),
    (message(), Problem.WRONG_SHAPE, "no 'content' in item 2 of 'messages'"),
    (message(content=None), Problem.WRONG_SHAPE, "a JSON null at 'content' in item 2"),
    (message(content=[{"type": "text"}]), Problem.WRONG_SHAPE, "a JSON array at 'content'"),
    (SHAREGPT | {"conversations": [{"from": "human"}]}, Problem.WRONG_SHAPE, "no 'value' in item"),
    ({**ALPACA, "history": [["Hi"]]}, Problem.WRONG_SHAPE, "item 1 of 'history'"),
    ({**ALPACA, "history": "Hi"}, Problem.WRONG_SHAPE, "a JSON string at 'history'"),
    ({**ALPACA, "output": 5}, Problem.WRONG_SHAPE, "a JSON number at 'output' in the record"),
    (message(role="bot", content="A"), Problem.UNKNOWN_ROLE, "role 'bot' in item 2"),
    (
        {"conversations": [{"from": "bing", "value": "A"}]},
        Problem.UNKNOWN_ROLE,
        "from 'bing' in item 1 of 'conversations'",
    ),
    (
        message(content="", tool_calls=[{"id": 1}]),
        Problem.STRUCTURED_FIELD,
        "'tool_calls' in item 2 of 'messages'",
    ),
    (message(content="A", reasoning_content="hm"), Problem.STRUCTURED_FIELD, "'reasoning_content'"),
    (chat("Q", "A", tools=[{"name": "f"}]), Problem.STRUCTURED_FIELD, "'tools' in the record"),
    (chat("Q"), Problem.NO_ANSWER, "no assistant turn"),
    ({"messages": []}, Problem.NO_ANSWER, "no assistant turn"),
    (chat("Q", "A", "Q"), Problem.WRONG_ORDER, "user at the end"),
    ({"messages": chat("Q", "A")["messages"][1:]}, Problem.WRONG_ORDER, "assistant) after nothing"),
    (
        {"messages": chat("Q", "A")["messages"] + chat("A", "B")["messages"][1:]},
        Problem.WRONG_ORDER,
        "turn 3 (assistant) after assistant",
    ),
    (
        {"messages": chat("Q", "A")["messages"] + chat("Q", "B", system="S")["messages"]},
        Problem.WRONG_ORDER,
        "the system prompt after assistant",
    ),
    (SHAREGPT | {"system": "S"}, Problem.WRONG_ORDER, "the system prompt after system"),
    (chat("Q", " \n"), Problem.EMPTY_CONTENT, "no text in turn 2 (assistant)"),
    (chat("", "A", system="S"), Problem.EMPTY_CONTENT, "no text in turn 1 (user)"),
    (message(content="A", weight=0.5), Problem.BAD_WEIGHT, "weight 0.5 at role assistant"),
    (message(content="A", weight=True), Problem.BAD_WEIGHT, "weight True at role assistant"),
    (message(role="user", content="A", weight=1), Problem.BAD_WEIGHT, "weight 1 at role user"),
]


@pytest.mark.parametrize(("record", "problem", "found"), REFUSED)
def test_a_record_is_refused_with_its_reason(
    record: dict[str, Any], problem: Problem, found: str
) -> None:
    with pytest.raises(RecordError) as error:
        read(record)
    assert error.value.problem == problem
    assert found in error.value.found


@pytest.mark.parametrize("value", [0, -1, 1e-60, 1e60, 10**99, True, "1", None, float("nan")])
def test_a_weight_is_a_finite_number_above_zero(value: object) -> None:
    with pytest.raises(RecordError) as error:
        read(chat("Q", "A", quality=value), weight_key="quality")
    assert error.value.problem == Problem.BAD_WEIGHT


@pytest.mark.parametrize("value", ["", 3, None])
def test_a_source_is_a_name(value: object) -> None:
    with pytest.raises(RecordError) as error:
        read(chat("Q", "A", kind=value), source_key="kind")
    assert error.value.problem == Problem.BAD_SOURCE


def test_tool_turns_need_a_template_that_writes_them() -> None:
    record = chat("Q", "<call>")
    record["messages"] += [{"role": "tool", "content": "42"}, {"role": "assistant", "content": "A"}]
    assert turns(record, tool_role=True)[2] == ("tool", "42")
    with pytest.raises(RecordError) as error:
        read(record)
    assert error.value.problem == Problem.TOOL_ROLE
    assert error.value.found == "turn 3 (tool), which the chat template does not write"


def test_every_problem_says_what_to_do() -> None:
    assert set(RULES) == set(Problem)
