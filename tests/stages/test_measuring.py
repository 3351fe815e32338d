"""How items are asked, and what a model cannot be asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.decoding.prompts import load_tokenizer
from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.result import Suite
from megatron_soaes.files import write_json
from megatron_soaes.recipe.evaluation_settings import Evaluation
from megatron_soaes.stages.measuring import measure, read_tasks
from megatron_soaes.stages.rendering import ChatRendering, PlainRendering, Tokens, rendering_for
from megatron_soaes.stages.subjects import hf_model
from tests.stages.exam import Exam, write_lines

TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
]


@pytest.fixture
def measured(exam: Exam, tmp_path: Path) -> Callable[..., dict[str, Suite]]:
    def run(**settings: Any) -> dict[str, Suite]:
        evaluation = Evaluation(max_new_tokens=8, sequence_length=16).model_copy(update=settings)
        subject = hf_model(exam.good, "fp32", 4)
        return measure(subject, read_tasks(evaluation), evaluation, tmp_path / "answers.jsonl")

    return run


def test_a_chat_prompt_is_that_of_the_template(exam: Exam) -> None:
    tokenizer = load_tokenizer(exam.good)
    ids = ChatRendering(exam.good, None).prompt(TURNS, "here")
    assert ids == tokenizer.apply_chat_template(
        TURNS, add_generation_prompt=True, return_dict=False
    )


def test_a_plain_prompt_is_completed_up_to_the_next_question(exam: Exam) -> None:
    tokenizer = load_tokenizer(exam.good)
    plain = PlainRendering(tokenizer)
    text = tokenizer.decode(plain.prompt(TURNS, "here"))
    assert text == "Be short.\n\n问题：One?\n答案：1\n\n问题：Two?\n答案："
    assert plain.answer(" 2\n\n问题：Three?\n答案：3") == "2"


def test_auto_is_the_template_where_there_is_one(exam: Exam) -> None:
    tokenizer = load_tokenizer(exam.good)
    assert isinstance(rendering_for(tokenizer, exam.good, Evaluation()), ChatRendering)
    plain = Evaluation(prompt="plain")
    assert isinstance(rendering_for(tokenizer, exam.good, plain), PlainRendering)
    tokenizer.chat_template = None
    assert isinstance(rendering_for(tokenizer, exam.good, Evaluation()), PlainRendering)


def with_template(exam: Exam, folder: Path, template: str) -> Path:
    """A copy of the model's tokenizer with another chat template."""
    shutil.copytree(exam.root / "tokenizer", folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, {**config, "chat_template": template})
    return folder


def test_todays_date_is_given_so_that_prompts_stay_the_same(exam: Exam, tmp_path: Path) -> None:
    template = (
        "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    folder = with_template(exam, tmp_path / "dated", template)
    with pytest.raises(UserError, match=r"today's date.*evaluation\.date"):
        ChatRendering(folder, None)
    dated = ChatRendering(folder, date(2024, 7, 26))
    assert load_tokenizer(folder).decode(dated.prompt(TURNS, "here")).startswith("2024")
    assert dated.settings["date"] == "2024-07-26"


def test_a_template_without_an_end_of_turn_is_refused(exam: Exam, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    folder = with_template(exam, tmp_path / "endless", template)
    with pytest.raises(UserError, match="prompt: plain"):
        ChatRendering(folder, None)


def test_blanks_before_a_choice_belong_to_it(exam: Exam) -> None:
    tokenizer = load_tokenizer(exam.good)
    context, choice = Tokens(tokenizer, 16).choice("the rule \n", "says")
    assert (tokenizer.decode(context), tokenizer.decode(choice)) == ("the rule", " \nsays")


def test_a_long_text_is_judged_in_windows_that_cover_it(exam: Exam) -> None:
    tokenizer = load_tokenizer(exam.good)
    text = "every rule of the company " * 5
    windows = Tokens(tokenizer, 16).text(text)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert [token for _, window in windows for token in window] == ids
    assert [len(context) + len(window) for context, window in windows[:-1]] == [16] * (
        len(windows) - 1
    )
    before = [tokenizer.eos_token_id, *(window[-1] for _, window in windows)]
    assert [context for context, _ in windows] == [[token] for token in before[:-1]]


def test_worked_examples_come_before_every_item(
    exam: Exam, measured: Callable[..., dict[str, Suite]]
) -> None:
    evaluation = exam.recipe().evaluation
    shown = measured(choices=evaluation.choices, few_shot=evaluation.few_shot)["mini"]
    bare = measured(choices=evaluation.choices)["mini"]
    assert shown.measures["choice.acc"].value == 100
    assert bare.measures["choice.acc"].value < 100
    assert shown.settings.keys() - bare.settings.keys() == {"few_shot", "few_shot_sha256"}


def test_an_item_that_is_too_long_is_named(
    measured: Callable[..., dict[str, Suite]], tmp_path: Path
) -> None:
    long = write_lines(tmp_path / "long.jsonl", [{"id": "x", "question": "q" * 300, "answer": "a"}])
    with pytest.raises(UserError, match=r"long\.jsonl: item x: found \d+ tokens.*at most 256"):
        measured(questions={"long": long})
