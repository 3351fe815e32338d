"""Chat templates are rendered as transformers renders them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from data_prep.sft.chat_template import ChatTemplate, load_chat_template, load_control_tokens
from data_prep.sft.problems import RecordError
from data_prep.tokenizer import load_tokenizer
from megatron_soaes.errors import UserError
from tests.data_prep.sft_material import (
    CHATML,
    ENDLESS,
    LLAMA3,
    TEMPLATES,
    contents,
    save_chat_model,
)

ODD = (
    "{%- for message in messages %}\n"
    "  {%- if loop.index > 3 %}{% break %}{% endif %}\n"
    "    {% generation %}\n"
    "{{ message | tojson }}{{ message | tojson(indent=2) }}\n"
    "    {% endgeneration %}\n"
    "{%- endfor %}\n"
    "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ mask_token }}{{ undefined_thing }}\n"
    "{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}\n"
)
"""What templates use beside messages, and white space that the environment takes away."""


def load(model: Path, day: datetime.date | None = None) -> ChatTemplate:
    info, _ = load_tokenizer(model, add_special_tokens=False)
    return load_chat_template(info, day)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ChatTemplate, Any]]:
    """For every template: ours, and the tokenizer of transformers."""
    loaded = {}
    for name, source in {**TEMPLATES, "endless": ENDLESS, "odd": ODD}.items():
        directory = save_chat_model(tmp_path_factory.mktemp(name), source)
        loaded[name] = (load(directory), AutoTokenizer.from_pretrained(directory))
    return loaded


@pytest.mark.parametrize("name", [*TEMPLATES, "endless", "odd"])
@given(
    texts=st.lists(contents, min_size=1, max_size=5),
    system=st.none() | contents,
    add_generation_prompt=st.booleans(),
)
def test_rendering_equals_transformers(
    models: dict[str, tuple[ChatTemplate, Any]],
    name: str,
    texts: list[str],
    system: str | None,
    add_generation_prompt: bool,
) -> None:
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages += [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    template, oracle = models[name]
    expected = oracle.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert template.render(messages, add_generation_prompt) == expected


def test_a_template_file_goes_before_the_configuration(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path, CHATML)
    (model / "chat_template.jinja").write_text(LLAMA3)
    messages = [{"role": "user", "content": "hello"}]
    oracle = AutoTokenizer.from_pretrained(model)
    rendered = load(model).render(messages)
    assert rendered == oracle.apply_chat_template(messages, tokenize=False)
    assert rendered.startswith("<|begin_of_text|>")


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    model = save_chat_model(tmp_path, templates)  # type: ignore[arg-type]
    assert load(model).source == CHATML


@pytest.mark.parametrize(
    ("template", "message"),
    [(None, "found no chat_template"), ("{% if %}", "line 1 of the chat template: found")],
)
def test_a_missing_or_broken_template_is_named(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(save_chat_model(tmp_path, template))


def test_todays_date_has_to_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ThatDay(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> ThatDay:
            return cls(2025, 3, 9, 12)

    monkeypatch.setattr(chat_template_utils, "datetime", ThatDay)
    template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    model = save_chat_model(tmp_path, template)
    messages = [{"role": "user", "content": "hello"}]
    expected = AutoTokenizer.from_pretrained(model).apply_chat_template(messages, tokenize=False)
    assert expected.startswith("09 Mar 2025")
    assert load(model, datetime.date(2025, 3, 9)).render(messages) == expected
    with pytest.raises(UserError, match="a chat template that writes today's date"):
        load(model).render(messages)


def test_what_a_template_refuses_is_told(tmp_path: Path) -> None:
    template = "{{ raise_exception('no ' + messages[0].role + ' here') }}"
    with pytest.raises(RecordError, match="no user here"):
        load(save_chat_model(tmp_path, template)).render([{"role": "user", "content": "hello"}])


def test_a_template_cannot_reach_out(tmp_path: Path) -> None:
    template = "{{ messages.__class__.__mro__ }}"
    with pytest.raises(RecordError, match="unsafe"):
        load(save_chat_model(tmp_path, template)).render([{"role": "user", "content": "hello"}])


def test_control_tokens_are_the_special_ones(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path, CHATML, additional_special_tokens=["</think>"])
    info, tokenizer = load_tokenizer(model, add_special_tokens=False)
    control = load_control_tokens(info, tokenizer)
    oracle = AutoTokenizer.from_pretrained(model)
    named = {token for token, _ in control.ids}
    assert named >= set(oracle.all_special_tokens) >= {"</think>", "<|endoftext|>"}
    assert "<think>" not in named
    assert control.find("a<|im_end|>b</think>") == [("<|im_end|>", 11), ("</think>", 20)]
    assert control.id_of("<|im_end|>") == tokenizer.token_to_id("<|im_end|>")
