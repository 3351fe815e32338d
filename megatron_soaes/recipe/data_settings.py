"""The data of a recipe: datasets, mixtures of them, and how conversations are packed."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from megatron_soaes.recipe.section import Name, Section, Share, Weight


class Packing(Section):
    """How conversations share a sequence; none is split and none sees another."""

    order: Literal["shuffled", "as_given"] = Field(
        "shuffled",
        description="shuffled: packed as tightly as they fit, packs in a new random order each "
        "pass; as_given: packed and trained in the dataset's order, for a curriculum within it.",
    )
    too_long: Literal["refuse", "truncate", "drop"] = Field(
        "refuse",
        description="What happens to a conversation with more than sequence_length + 1 tokens. "
        "What was truncated or dropped is counted in the stage's metrics.",
    )


class Chat(Section):
    """How conversations become tokens and loss weights; the chat template is the target's."""

    format: Literal["auto", "messages", "sharegpt", "alpaca"] = Field(
        "auto", description="How a record is laid out; auto: by its fields, record by record."
    )
    train_on: Literal["all", "last"] = Field(
        "all", description="Which of the assistant's turns are trained."
    )
    system: str | None = Field(
        None, description="System prompt of every conversation, in place of its own."
    )
    weight_key: str | None = Field(
        None, description="Key of a record's loss weight, above 0; by default all weigh 1."
    )
    date: datetime.date | None = Field(
        None, description="The date that a chat template writes which asks for today's."
    )
    source_key: str | None = Field(
        None,
        description="Key of a record's source, such as its topic: validation is told by source. "
        "By default all records have one source, the dataset.",
    )


class Dataset(Section):
    """One named source of documents or conversations: files to tokenize, or an indexed dataset."""

    text: list[str] = Field(
        [], description="JSONL(.gz/.zst) or Parquet files or globs of documents to tokenize."
    )
    key: str = Field("text", description="The JSON key or column that holds a document's text.")
    conversations: list[str] = Field(
        [], description="JSONL(.gz/.zst) or Parquet files or globs of conversations, for SFT."
    )
    chat: Chat = Field(Chat(), description="How `conversations` are read.")
    indexed: Path | None = Field(
        None, description="Prefix of an existing .bin/.idx pair of documents instead."
    )
    indexed_conversations: Path | None = Field(
        None, description="Prefix of a dataset that `soaes prep sft` made, instead."
    )
    responses: Name | None = Field(
        None, description="A respond stage instead: what it let a model answer, prompts included."
    )
    holdout: Share = Field(
        0.0,
        description="Share of the documents or conversations (the last ones) kept for validation "
        "only.",
    )

    @property
    def is_chat(self) -> bool:
        """Whether it holds conversations, not documents."""
        return bool(self.conversations or self.indexed_conversations or self.responses)

    @property
    def files(self) -> list[str]:
        """The files or globs to tokenize; none for an indexed dataset."""
        return self.conversations or self.text


class Replay(Section):
    """Data of earlier stages or of general kind, mixed in against forgetting."""

    weights: dict[Name, Weight] = Field(description="Dataset name to weight.")
    share: Share = Field(description="Share of all training samples that are replay.")


class Blend(Section):
    """A weighted mixture of datasets; weights need not sum to 1."""

    weights: dict[Name, Weight] = Field(description="Dataset name to weight.")
    replay: Replay | None = Field(None, description="General data mixed in against forgetting.")

    def names(self) -> list[str]:
        """All datasets of the mixture."""
        return list(dict.fromkeys([*self.weights, *(self.replay.weights if self.replay else ())]))

    def shares(self) -> dict[str, float]:
        """Share of the training samples by dataset name; the shares sum to 1."""
        parts = [(self.weights, 1.0)]
        if self.replay:
            parts = [
                (self.weights, 1 - self.replay.share),
                (self.replay.weights, self.replay.share),
            ]
        shares: dict[str, float] = {}
        for weights, part in parts:
            total = sum(weights.values())
            for name, weight in weights.items():
                shares[name] = shares.get(name, 0.0) + part * weight / total
        return shares


class Data(Section):
    """All data of a recipe, by name."""

    datasets: dict[Name, Dataset] = Field({}, description="Named sources of documents.")
    blends: dict[Name, Blend] = Field({}, description="Named mixtures of datasets.")
