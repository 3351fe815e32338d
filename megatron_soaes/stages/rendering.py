"""How the items of an evaluation become token ids, the same for every model that is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from data_prep.sft.chat_template import load_chat_template, load_control_tokens
from data_prep.sft.problems import RecordError
from data_prep.sft.turns import Chat
from data_prep.tokenizer import load_tokenizer
from megatron_soaes.decoding import prompts
from megatron_soaes.decoding.interface import Request
from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.tasks import Message
from megatron_soaes.recipe.evaluation_settings import Evaluation

QUESTION, ANSWER = "问题：", "答案："
"""Labels of a plain prompt."""


class ChatRendering:
    """A question by the model's own chat template, as SFT data is rendered."""

    def __init__(self, hf_dir: Path, day: date | None) -> None:
        """Raises UserError without a template whose answers have an end, or without its date."""
        info, self._tokenizer = load_tokenizer(hf_dir, add_special_tokens=False)
        self._template = load_chat_template(info, day)
        control = load_control_tokens(info, self._tokenizer)
        try:
            end = Chat(self._template, control).end_of_turn()
        except RecordError as error:
            raise UserError(
                self._template.place, error.found, "a special token that ends every answer",
                "Correct the template, or ask with `prompt: plain`.",
            ) from None  # fmt: skip
        except UserError as error:
            fix = "Give it as `evaluation.date`, or with --date YYYY-MM-DD."
            raise UserError(error.where, error.found, error.expected, fix) from None
        self.stop_ids = (control.id_of(end),)
        self.settings = {
            "prompt": "chat template",
            "chat_template_sha256": self._template.sha256,
            "date": None if day is None else day.isoformat(),
        }

    def prompt(self, messages: Sequence[Message], where: str) -> list[int]:
        """Token ids up to where the answer begins; `where` names the item in errors."""
        try:
            text = self._template.render(list(map(dict, messages)), add_generation_prompt=True)
        except RecordError as error:
            raise UserError(
                where, error.found, "a conversation that the template takes", "Correct the item."
            ) from None
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def answer(self, text: str) -> str:
        """The answer in what the model wrote."""
        return text


class PlainRendering:
    """A question as a text to complete: labelled turns, the answer up to the next question.

    A question alone is `问题：{question}` and, on the next line, `答案：`.
    """

    stop_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.settings = {"prompt": f"plain: {QUESTION!r} and {ANSWER!r}, up to the next question"}

    def prompt(self, messages: Sequence[Message], where: str) -> list[int]:
        """Token ids up to where the answer begins."""
        forms = {"system": "{}\n\n", "user": QUESTION + "{}\n", "assistant": ANSWER + "{}\n\n"}
        turns = [forms[message["role"]].format(message["content"]) for message in messages]
        return prompts.render_prompt(self._tokenizer, "".join(turns) + ANSWER)

    def answer(self, text: str) -> str:
        """What stands before a question that the model goes on with."""
        return text.partition(QUESTION)[0].strip()


Rendering = ChatRendering | PlainRendering


def rendering_for(
    tokenizer: PreTrainedTokenizerBase, hf_dir: Path, settings: Evaluation
) -> Rendering:
    """The rendering that `evaluation.prompt` asks for; UserError when the model has none."""
    chat = settings.prompt == "chat" or (
        settings.prompt == "auto" and tokenizer.chat_template is not None
    )
    return ChatRendering(hf_dir, settings.date) if chat else PlainRendering(tokenizer)


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts whose likelihood is asked for."""

    tokenizer: PreTrainedTokenizerBase
    window: int
    """Most tokens of one request."""

    @property
    def first_token(self) -> int:
        """What stands before a text: begin-of-text, or end-of-text where the model has none."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        raise UserError(
            self.tokenizer.name_or_path, "neither a bos_token nor an eos_token",
            "one of them, to stand before a text", "Add it to tokenizer_config.json.",
        )  # fmt: skip

    def choice(self, context: str, choice: str) -> Request:
        """A choice after its context, cut as lm-evaluation-harness cuts them.

        Blanks at the end of the context belong to the choice, which has the tokens that the two
        together have beyond those of the context (`_encode_pair` in `lm_eval/api/model.py`).
        """
        bare = context.rstrip()
        whole = self._ids(context + choice)
        start = len(self._ids(bare))
        return whole[:start], whole[start:]

    def text(self, text: str) -> list[Request]:
        """A text in windows, each after the last token of the one before it."""
        ids = [self.first_token, *self.tokenizer(text, add_special_tokens=False).input_ids]
        size = self.window - 1
        starts = range(1, len(ids), size)
        return [(ids[start - 1 : start], ids[start : start + size]) for start in starts]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the windows of texts."""
        return {"window": self.window, "first_token": self.first_token}

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)
