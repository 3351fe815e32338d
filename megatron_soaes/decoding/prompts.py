"""From a question to token ids and back, with the model's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

from data_prep.same_tokenizer import ids_in
from megatron_soaes.decoding.interface import TextOf
from megatron_soaes.errors import UserError

Message = Mapping[str, str]
"""A turn of a conversation: `role` and `content`."""


def load_tokenizer(hf_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of an HF directory; UserError when there is none that can be read."""
    if not hf_dir.is_dir():
        # transformers would take it for the name of a model on a hub.
        raise UserError(hf_dir, "no such directory", "a Hugging Face directory", "Check the path.")
    try:
        return transformers.AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
    except Exception as error:  # tokenizers raises the bare class
        raise UserError(
            hf_dir, f"no readable tokenizer ({str(error).partition(chr(10))[0]})",
            "tokenizer.json and tokenizer_config.json",
            "Copy the tokenizer of the base model there.",
        ) from None  # fmt: skip


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str | Sequence[Message], **options: Any
) -> list[int]:
    """Token ids of a question: plain text as it is, a conversation by the model's chat template.

    Plain text gets the special tokens that the tokenizer adds to any text. A conversation ends with
    the beginning of the assistant's turn; `options` go to the template (Qwen3: `enable_thinking`).
    Raises UserError for a conversation when the tokenizer has no chat template.
    """
    if isinstance(question, str):
        return list(tokenizer(question).input_ids)
    if tokenizer.chat_template is None:
        raise UserError(
            tokenizer.name_or_path, "no chat template", "one, because the prompt is a conversation",
            "Use a model with a chat template, or ask with plain text.",
        )  # fmt: skip
    turns = [dict(message) for message in question]
    return list(
        tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=False, **options
        )
    )


def text_of(tokenizer: PreTrainedTokenizerBase) -> TextOf:
    """What makes text of generated tokens; special tokens leave no text."""

    def text(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

    return text


def stop_ids(tokenizer: PreTrainedTokenizerBase, hf_dir: Path) -> tuple[int, ...]:
    """The tokens that end a completion, ascending.

    Those that generation_config.json and config.json call `eos_token_id` (chat models list
    end-of-turn and end-of-text there), and the tokenizer's own. Raises UserError as `ids_in`.
    """
    found = {tokenizer.eos_token_id} - {None}
    for name in ("generation_config.json", "config.json"):
        found.update(ids_in(hf_dir / name, "eos_token_id"))
    return tuple(sorted(found))
