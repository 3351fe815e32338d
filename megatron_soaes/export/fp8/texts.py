"""The texts that FP8 is calibrated on and judged by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from data_prep.prompt_file import Question, read_questions
from data_prep.sft.chat_template import ChatTemplate, load_chat_template
from data_prep.sft.problems import RecordError
from data_prep.tokenizer import load_tokenizer
from megatron_soaes.errors import UserError
from megatron_soaes.export.source import Source

LONGEST = 2048
"""Tokens of a text that are used: its first ones."""
HELD_OUT = 8
"""Every eighth text judges, the others calibrate."""
DAY = date(2025, 1, 1)
"""What templates that write today's date are told, so that scales are the same every day."""


@dataclass(frozen=True)
class CalibrationTexts:
    """Token ids, int64 [tokens] each."""

    calibrating: list[Tensor]
    held_out: list[Tensor]
    cut: int
    """Texts that are longer than what is used of them."""


def read_texts(file: Path, source: Source) -> CalibrationTexts:
    """The texts of a file (`data_prep.prompt_file`) in tokens of the model, every eighth held out.

    A conversation goes through the chat template; one that does not end with an answer is followed
    by the beginning of the assistant's turn. Raises UserError for a file that cannot be read, for
    fewer than two texts, for held-out texts without a second token, for a conversation that has no
    template or is refused by it, and for tokens that the model does not have.
    """
    info, tokenizer = load_tokenizer(source.hf_files, add_special_tokens=True)
    questions = read_questions(file)
    conversations = any(not isinstance(question, str) for question in questions)
    template = load_chat_template(info, DAY) if conversations else None
    whole = [
        tokenizer.encode(
            _rendered(question, template, f"{file}, text {number}"),
            add_special_tokens=isinstance(question, str),
        ).ids
        for number, question in enumerate(questions, 1)
    ]
    longest = min(LONGEST, source.shape.max_position)
    texts = [torch.tensor(ids[:longest], dtype=torch.int64) for ids in whole if ids]
    held_out = [text for text in texts[::HELD_OUT] if len(text) > 1]
    calibrating = [text for number, text in enumerate(texts) if number % HELD_OUT]
    if not held_out or not calibrating:
        raise UserError(
            file, f"{len(texts)} texts", "two at least, the first of more than one token",
            "Give real prompts, some hundred of them.",
        )  # fmt: skip
    _require_known(texts, source, file)
    return CalibrationTexts(calibrating, held_out, sum(len(ids) > longest for ids in whole))


def _rendered(question: Question, template: ChatTemplate | None, where: str) -> str:
    if isinstance(question, str):
        return question
    assert template is not None
    try:
        return template.render(question, question[-1]["role"] != "assistant")
    except RecordError as error:
        raise UserError(
            where, str(error), "a conversation that the model's chat template writes",
            "Correct the text, or remove it.",
        ) from None  # fmt: skip


def _require_known(texts: list[Tensor], source: Source, file: Path) -> None:
    largest = max(int(text.max()) for text in texts)
    if largest >= source.shape.vocab_size:
        raise UserError(
            file, f"token {largest} by the tokenizer of {source.hf_files}",
            f"tokens below {source.shape.vocab_size}, the rows of the model's embedding",
            "Use the model's own tokenizer.",
        )  # fmt: skip
