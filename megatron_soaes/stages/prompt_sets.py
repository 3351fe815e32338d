"""Prompts from a recipe's datasets, as the token ids that stand there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset
from numpy.typing import NDArray

from megatron_soaes.data.conversations import open_conversations
from megatron_soaes.data.indexed import open_indexed
from megatron_soaes.decoding.interface import Prompt
from megatron_soaes.errors import UserError
from megatron_soaes.stages.datasets import Reading, conversations, training_part
from megatron_soaes.stages.locations import indexed_prefix


class LeftOut(StrEnum):
    """Why a document or a conversation gives no prompt."""

    TOO_SHORT = "too_short"
    """A document that is not longer than the prompt would be."""
    UNANSWERED = "unanswered"
    """A conversation without trained tokens, or with nothing before them."""
    TOO_LONG = "too_long"
    """No room for an answer within the model's positions."""
    REPEATED = "repeated"
    """The prompt is already there: the answers to it would be, too."""


@dataclass(frozen=True)
class Wanted:
    """Which prompts a stage asks."""

    document_prefix: int
    """Tokens of a document that are its prompt."""
    longest: int
    """Most tokens of a prompt."""
    most: int | None
    """Prompts of each dataset, evenly spread over those that fit; None for all."""


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one dataset, in its order and none twice."""

    dataset: str
    prompts: Sequence[Prompt]
    stop: int
    """The token that ends an answer: a document's last, or the last of a trained turn."""
    left_out: Mapping[LeftOut, int]
    """How many were left out, for each reason."""


def read_prompts(reading: Reading, name: str, wanted: Wanted) -> PromptSet:
    """The prompts that the training part of a dataset gives.

    Of a conversation: all tokens before its last run of trained ones. Of a document: its first
    tokens. Raises UserError for files that are missing or belong to another tokenizer, for a
    dataset that gives no prompt, and for conversations whose answers end with different tokens.
    """
    prefix = indexed_prefix(reading.recipe, name)
    _, share = training_part(reading.recipe, name)
    is_chat = reading.recipe.data.datasets[name].is_chat
    weights = None
    if is_chat:
        part = conversations(reading.recipe, name, (0.0, share))
        tokens, weights = open_conversations(part, reading.tokenizer)
        count = round(share * len(tokens.sequence_lengths))
        ends = np.array([prompt_length(weights[i]) for i in range(count)], dtype=np.int64)
    else:
        tokens = open_indexed(prefix)
        count = round(share * len(tokens.sequence_lengths))
        is_longer = tokens.sequence_lengths[:count] > wanted.document_prefix
        ends = np.where(is_longer, wanted.document_prefix, 0)
    fitting = np.flatnonzero((ends > 0) & (ends <= wanted.longest))
    chosen = spread(fitting, wanted.most).tolist()
    prompts = dict.fromkeys(tuple(tokens[i][: ends[i]].tolist()) for i in chosen)
    unusable = int((ends == 0).sum())
    left_out = {
        LeftOut.TOO_SHORT: 0 if is_chat else unusable,
        LeftOut.UNANSWERED: unusable if is_chat else 0,
        LeftOut.TOO_LONG: int((ends > wanted.longest).sum()),
        LeftOut.REPEATED: len(chosen) - len(prompts),
    }
    if not prompts:
        raise _no_prompt(name, len(ends), left_out, wanted)
    stop = reading.tokenizer.eod if weights is None else _end_of_turn(name, tokens, weights, chosen)
    return PromptSet(name, list(prompts), stop, left_out)


def prompt_length(weights: NDArray[np.float32]) -> int:
    """Tokens before a conversation's last run of trained tokens, from its [tokens] loss weights.

    0 where nothing is trained or nothing stands before.
    """
    trained = np.flatnonzero(weights > 0)
    if not len(trained):
        return 0
    # The same for all tokens of a run, and more from run to run.
    untrained_before = trained - np.arange(len(trained))
    return int(trained[np.searchsorted(untrained_before, untrained_before[-1])])


def spread(numbers: NDArray[np.int64], most: int | None) -> NDArray[np.int64]:
    """At most `most` of the numbers, in order and evenly spread from the first on."""
    if most is None or most >= len(numbers):
        return numbers
    return numbers[np.arange(most) * len(numbers) // most]


def _end_of_turn(
    name: str, tokens: IndexedDataset, weights: IndexedDataset, chosen: Sequence[int]
) -> int:
    """The last trained token of all chosen conversations."""
    ends = {i: int(tokens[i][np.flatnonzero(weights[i] > 0)[-1]]) for i in chosen}
    first = ends[chosen[0]]
    other = next((i for i, end in ends.items() if end != first), None)
    if other is not None:
        raise UserError(
            f"dataset {name}, conversation {other}",
            f"token {ends[other]} at the end of the last answer",
            f"token {first}, as in conversation {chosen[0]}: the end of a turn, where the model "
            "is to stop",
            "Make the dataset again with one chat template and without cutting conversations.",
        )
    return first


def _no_prompt(name: str, count: int, left_out: Mapping[LeftOut, int], wanted: Wanted) -> UserError:
    reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
    return UserError(
        f"dataset {name}", f"no prompt in {count} records ({reasons or 'it has none'})",
        f"prompts of at most {wanted.longest} tokens, of documents the first "
        f"{wanted.document_prefix}",
        "Lower document_prefix, holdout or sampling.max_new_tokens, or take another dataset.",
    )  # fmt: skip
