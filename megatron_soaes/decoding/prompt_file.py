"""The prompts of a file as token ids."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data_prep.prompt_file import read_questions
from megatron_soaes.decoding.prompts import render_prompt


def read_prompts(file: Path, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of every prompt of a file (`data_prep.prompt_file`), conversations by the template.

    Raises UserError for a file or a line that cannot be read, and for a file without prompts.
    """
    return [render_prompt(tokenizer, question) for question in read_questions(file)]
