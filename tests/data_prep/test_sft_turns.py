"""What is trained: exactly the answers and the token that ends each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from data_prep.documents import BadDocumentError
from data_prep.encoders import HuggingFaceEncoder
from data_prep.sft.chat_template import load_chat_template, load_control_tokens
from data_prep.sft.problems import RecordError
from data_prep.sft.reader import NumberedRecord
from data_prep.sft.records import RecordReader
from data_prep.sft.shards import SFTJob
from data_prep.sft.turns import Chat
from data_prep.tokenizer import load_tokenizer
from tests.data_prep.sft_material import (
    CHATML,
    DEFAULT_SYSTEM,
    END_OF_TURN,
    ENDLESS,
    FORGETFUL,
    LLAMA3,
    TEMPLATES,
    chat,
    contents,
    save_chat_model,
    trained_texts,
)

Weighed = tuple[list[int], list[float]]


class Model:
    """A template with its tokenizer, ours and that of transformers."""

    def __init__(self, directory: Path, template: str, **config: object) -> None:
        path = save_chat_model(directory, template, **config)
        self.info, self.tokenizer = load_tokenizer(path, add_special_tokens=False)
        control = load_control_tokens(self.info, self.tokenizer)
        self.chat = Chat(load_chat_template(self.info, None), control)
        self.oracle = AutoTokenizer.from_pretrained(path)

    def job(self, **options: Any) -> SFTJob:
        reader = RecordReader("auto", options.pop("system", None), "w", None, "s", tool_role=True)
        settings = {"train_on": "all", "max_length": None, "too_long": "refuse", **options}
        return SFTJob(Path(), self.info, False, reader, self.chat, **settings)

    def weigh(self, record: dict[str, Any], **options: Any) -> Weighed:
        """The ids and the weights of a record. Raises `BadDocumentError` or `RecordError`."""
        job = self.job(**options)
        prepared = job.prepare(NumberedRecord(1, {"w": 1, **record}, b""))
        flat, lengths = HuggingFaceEncoder(self.tokenizer, False).encode_batch(prepared.texts)
        ids = np.split(flat, np.cumsum(lengths)[:-1])
        weights = job.weigh(prepared.rendered, ids, prepared.conversation.weight)
        return ids[0].tolist(), weights.tolist()

    def refusal(self, record: dict[str, Any], **options: Any) -> tuple[str, str]:
        """Why a record is refused, and what was found."""
        with pytest.raises((BadDocumentError, RecordError)) as error:
            self.weigh(record, **options)
        if isinstance(error.value, RecordError):
            return error.value.problem, error.value.found
        assert isinstance(error.value, BadDocumentError)
        return error.value.reason, error.value.found

    def trained(self, record: dict[str, Any], **options: Any) -> list[str]:
        return trained_texts(*self.weigh(record, **options), self.tokenizer)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {n: Model(tmp_path_factory.mktemp(n), source) for n, source in TEMPLATES.items()}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Model]:
    return lambda template, **config: Model(tmp_path / "model", template, **config)


@pytest.mark.parametrize("name", TEMPLATES)
@given(
    texts=st.lists(contents, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0),
    system=st.none() | contents,
)
def test_the_answers_and_their_ends_are_trained_and_nothing_else(
    models: dict[str, Model], name: str, texts: list[str], system: str | None
) -> None:
    model = models[name]
    record = chat(*texts, system=system)
    try:
        ids, weights = model.weigh(record)
    except (BadDocumentError, RecordError) as error:
        reason = error.reason if isinstance(error, BadDocumentError) else error.problem
        assert reason in ("border_inside_token", "control_token", "turns_rewritten")
        assume(False)

    messages = record["messages"]
    assert ids == model.oracle.apply_chat_template(messages)["input_ids"]
    for position, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = model.oracle.apply_chat_template(
                messages[:position], add_generation_prompt=True
            )["input_ids"]
            assert ids[: len(prompt)] == prompt
            assert (weights[len(prompt) - 1], weights[len(prompt)]) == (0, 1)
    header = "<|channel|>final<|message|>" if name == "channels" else ""
    answers = [text.strip() if name == "llama3" else text for text in texts[1::2]]
    normal = model.tokenizer.normalizer.normalize_str
    assert trained_texts(ids, weights, model.tokenizer) == [
        header + normal(answer) + END_OF_TURN[name] for answer in answers
    ]


def test_the_end_of_turn_is_trained_and_the_line_end_after_it_is_not(
    models: dict[str, Model],
) -> None:
    model = models["chatml"]
    ids, weights = model.weigh(chat("你好", "您好", "2+2?", "4"))
    pieces = [model.tokenizer.decode([i], skip_special_tokens=False) for i in ids]
    assert pieces[-3:] == ["4", "<|im_end|>", "\n"]
    assert weights[-3:] == [1, 1, 0]
    text = model.tokenizer.decode(ids, skip_special_tokens=False)
    assert text == (
        f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"
        "<|im_start|>assistant\n您好<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n"
    )


def test_one_token_begins_a_text_where_the_template_writes_it(models: dict[str, Model]) -> None:
    model = models["llama3"]
    ids, weights = model.weigh(chat("hello", "  well, hello\n"))
    begin = dict(model.chat.control.ids)["<|begin_of_text|>"]
    assert (ids[0], ids.count(begin), weights[0]) == (begin, 1, 0)
    assert trained_texts(ids, weights, model.tokenizer) == ["well, hello<|eot_id|>"]


def test_all_answers_or_the_last_one(models: dict[str, Model]) -> None:
    record = chat("a", "first", "b", "second")
    model = models["chatml"]
    assert model.trained(record) == ["first<|im_end|>", "second<|im_end|>"]
    assert model.trained(record, train_on="last") == ["second<|im_end|>"]


def test_weights_of_records_and_of_messages(models: dict[str, Model]) -> None:
    record = chat("a", "first", "b", "second", w=2.5)
    record["messages"][1]["weight"] = 0
    record["messages"][3]["weight"] = 1
    model = models["chatml"]
    assert set(model.weigh(record)[1]) == {0, 2.5}
    assert model.trained(record) == ["second<|im_end|>"]
    record["messages"][3]["weight"] = 0
    assert model.trained(record) == []


def test_a_system_prompt_takes_the_place_of_others(models: dict[str, Model]) -> None:
    model = models["chatml"]
    expected = model.weigh(chat("a", "b", system="Be brief."))
    assert model.weigh(chat("a", "b"), system="Be brief.") == expected
    assert model.weigh(chat("a", "b", system="Ramble."), system="Be brief.") == expected


THOUGHTS = chat("a", "<think>hm</think>first", "b", "<think>so</think>second")


def test_a_template_that_rewrites_earlier_answers_is_refused(models: dict[str, Model]) -> None:
    reason, found = models["forgetful"].refusal(THOUGHTS)
    assert reason == "turns_rewritten"
    assert found.startswith("text up to the end of turn 2 (assistant) that is rendered as '")
    assert "tant\\n<think>hm</think>first" in found
    assert "tant\\nfirst<|im_end|>" in found


def test_a_rewriting_template_can_train_the_last_answer(models: dict[str, Model]) -> None:
    model = models["forgetful"]
    ids, weights = model.weigh(THOUGHTS, train_on="last")
    assert trained_texts(ids, weights, model.tokenizer) == ["<think>so</think>second<|im_end|>"]
    assert "hm" not in model.tokenizer.decode(ids)
    assert len(model.trained(chat("a", "<think>hm</think>first"))) == 1


def test_a_prompt_that_is_not_how_the_turn_begins_is_refused(make: Callable[..., Model]) -> None:
    model = make(CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}"))
    reason, found = model.refusal(chat("a", "b"))
    assert reason == "turns_rewritten"
    assert "before turn 2 (assistant)" in found
    with pytest.raises(RecordError, match="before an answer"):
        model.chat.end_of_turn()


def test_an_answer_without_a_special_end_is_refused(make: Callable[..., Model]) -> None:
    with pytest.raises(RecordError) as error:
        make(ENDLESS).chat.end_of_turn()
    assert error.value.found == r"'\n' after an answer, without a special token"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_turn_is_found(models: dict[str, Model], name: str) -> None:
    assert models[name].chat.end_of_turn() == END_OF_TURN[name]


def test_the_end_of_turn_may_be_the_eos_token(make: Callable[..., Model]) -> None:
    template = CHATML.replace("message.content + '<|im_end|>\\n'", "message.content + eos_token")
    assert make(template).trained(chat("a", "b")) == ["b<|endoftext|>"]


def test_a_token_across_the_border_is_refused(make: Callable[..., Model]) -> None:
    model = make(CHATML.replace("assistant\\n' }}", "assistant: ' }}").replace(
        "'<|im_start|>' + message.role + '\\n'",
        "'<|im_start|>' + message.role + (': ' if message.role == 'assistant' else '\\n')",
    ))  # fmt: skip
    reason, found = model.refusal(chat("a", "the"))
    assert reason == "border_inside_token"
    assert found == "a token that joins the prompt and the start of turn 2 (assistant)"
    alone = model.tokenizer.encode("assistant: ").tokens
    assert model.tokenizer.encode("assistant: the").tokens[: len(alone)] != alone


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "<|eot_id|>"])
def test_control_tokens_in_a_text_are_refused(
    models: dict[str, Model], role: str, token: str
) -> None:
    texts = {"system": "s", "user": "u", "assistant": "a", role: f"x {token}\n<|im_start|>user"}
    record = chat(texts["user"], texts["assistant"], system=texts["system"])
    reason, found = models["chatml"].refusal(record)
    place = {"system": "the system prompt", "user": "turn 1 (user)"}
    assert reason == "control_token"
    assert found == f"the control token {token!r} in {place.get(role, 'turn 2 (assistant)')}"


def test_control_tokens_that_normalization_makes_are_refused(
    make: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer that matches its special tokens after composing characters."""
    model = make(CHATML)
    model.tokenizer.add_special_tokens([AddedToken("<\u00e9>", normalized=True)])
    info = model.info
    object.__setattr__(info, "largest_id", info.largest_id + 1)
    chat_with_it = Chat(model.chat.template, load_control_tokens(info, model.tokenizer))
    monkeypatch.setattr(model, "chat", chat_with_it)
    assert model.refusal(chat("<e\u0301>", "b")) == (
        "control_token",
        "control tokens that the chat template does not write, made by the contents",
    )


def test_added_tokens_that_are_text_may_be_said(models: dict[str, Model]) -> None:
    model = models["chatml"]
    ids, weights = model.weigh(chat("a", "<think>hm</think>b"))
    assert model.tokenizer.token_to_id("<think>") in ids
    assert trained_texts(ids, weights, model.tokenizer) == ["<think>hm</think>b<|im_end|>"]


@pytest.mark.parametrize(
    ("cut", "place"),
    [
        (("message.role in ['user', 'assistant']", "message.role == 'assistant'"), "turn 1 (user)"),
        (
            ("message.content + '<|im_end|>", "message.content.split('lo')[-1] + '<|im_end|>"),
            "turn 2 (assistant)",
        ),
        (("+ messages[0]['content'] +", "+ 'S' +"), "the system prompt"),
    ],
)
def test_a_template_that_leaves_text_out_is_refused(
    make: Callable[..., Model], cut: tuple[str, str], place: str
) -> None:
    model = make(CHATML.replace(*cut))
    reason, found = model.refusal(chat("y", "long", system="system prompt"))
    assert (reason, found) == (
        "content_not_rendered",
        f"a chat template that leaves out or changes the text of {place}",
    )


def test_a_template_that_refuses_the_system_prompt(make: Callable[..., Model]) -> None:
    model = make(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + LLAMA3
    )
    assert model.refusal(chat("a", "b", system="c")) == (
        "template_refuses",
        "what the chat template refuses (no system)",
    )
    assert model.trained(chat("a", "b")) == ["b<|eot_id|>"]


def test_tool_turns_are_text_where_the_template_writes_them(
    models: dict[str, Model], make: Callable[..., Model]
) -> None:
    record = chat("sum?", "<tool_call>sum</tool_call>")
    record["messages"] += [
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "It is 42."},
    ]
    assert models["chatml"].chat.writes_tool_turns()
    assert models["chatml"].trained(record) == [
        "<tool_call>sum</tool_call><|im_end|>",
        "It is 42.<|im_end|>",
    ]
    silent = FORGETFUL.replace(
        "{% set content = message.content %}",
        "{% if message.role == 'tool' %}{% continue %}{% endif %}"
        "{% set content = message.content %}",
    )
    assert not make(silent).chat.writes_tool_turns()


def test_half_a_surrogate_pair_is_named(models: dict[str, Model]) -> None:
    job = models["chatml"].job()
    record = NumberedRecord(1, {"w": 1, **chat("a", "half \ud83d")}, b"\\ud83d")
    with pytest.raises(BadDocumentError) as error:
        job.prepare(record)
    assert error.value.found == "half a surrogate pair in turn 2 (assistant)"
