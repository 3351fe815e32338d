"""Small indexed datasets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_prep.indexed import token_dtype, write_index
from megatron_soaes.data.blend import OpenSource
from megatron_soaes.data.conversations import PackSettings
from megatron_soaes.data.indexed import DocumentRange, TokenizerFacts, Windows, WindowSettings

VOCABULARY = 1000
EOD = 7


def write_dataset(prefix: Path, documents: Sequence[Sequence[int]]) -> Path:
    """Write PREFIX.bin and PREFIX.idx; returns PREFIX."""
    dtype = token_dtype(VOCABULARY)
    lengths = np.array([len(document) for document in documents], dtype=np.int32)
    tokens = np.concatenate([np.array(document, dtype) for document in documents])
    prefix.with_name(prefix.name + ".bin").write_bytes(tokens.tobytes())
    with prefix.with_name(prefix.name + ".idx").open("wb") as stream:
        count = int((lengths > 0).sum())
        write_index(stream, dtype, len(documents), count, lambda: [lengths])
    return prefix


def numbered_documents(count: int, length: int = 9) -> list[list[int]]:
    """Document i says i + 100 again and again, then EOD."""
    return [[100 + i] * (length - 1) + [EOD] for i in range(count)]


def window_sources(
    documents: Mapping[str, DocumentRange], settings: WindowSettings
) -> dict[str, OpenSource]:
    """Datasets of documents as a blend opens them; source ids in the order of `documents`."""

    def opener(number: int, chosen: DocumentRange) -> OpenSource:
        return lambda samples: Windows(chosen, samples, settings, number)

    return {name: opener(i, chosen) for i, (name, chosen) in enumerate(documents.items())}


def settings(folder: Path, length: int = 16, seed: int = 3) -> WindowSettings:
    """Windows of `length` tokens, indexes under `folder`/cache."""
    return WindowSettings(length, seed, TokenizerFacts(VOCABULARY, EOD, "0" * 64), folder / "cache")


Conversation = tuple[list[int], list[float]]
"""Token ids, and the weight of predicting each."""


def write_conversations(
    prefix: Path, conversations: Sequence[Conversation], sources: Sequence[str] = ()
) -> Path:
    """Write an SFT dataset; `sources` names each conversation's source, by default one for all."""
    names = sorted(set(sources)) or [prefix.name]
    ids = [names.index(source) for source in sources] or [0] * len(conversations)
    lengths = np.array([len(tokens) for tokens, _ in conversations], dtype=np.int32)
    columns: list[tuple[str, np.dtype[Any]]] = [
        ("", token_dtype(VOCABULARY)),
        ("_weights", np.dtype("<f4")),
    ]
    for column, (suffix, dtype) in enumerate(columns):
        path = prefix.with_name(prefix.name + suffix)
        values = np.concatenate([np.array(parts[column], dtype) for parts in conversations])
        path.with_name(path.name + ".bin").write_bytes(values.tobytes())
        with path.with_name(path.name + ".idx").open("wb") as stream:
            write_index(stream, dtype, len(lengths), len(lengths), lambda: [lengths])
    np.save(prefix.with_name(prefix.name + "_sources.npy"), np.array(ids, dtype=np.uint16))
    description = {
        "format": "soaes-sft", "version": 1, "sources": names, "tokenizer_sha256": "0" * 64,
    }  # fmt: skip
    prefix.with_name(prefix.name + ".json").write_text(json.dumps(description), encoding="utf-8")
    return prefix


def random_conversations(
    seed: int, count: int, longest: int, vocabulary: int = VOCABULARY
) -> list[Conversation]:
    """Conversations of 2 to `longest` tokens, a part of each trained with a weight of its own."""
    generator = np.random.default_rng(seed)
    found = []
    for length in generator.integers(2, longest + 1, count).tolist():
        tokens = np.minimum(generator.zipf(1.5, length) + 1 + EOD, vocabulary - 1)
        weights = (generator.random(length) < 0.6) * generator.choice([0.5, 1.0, 2.0])
        weights[0], weights[-1] = 0.0, 1.0
        found.append((tokens.tolist(), weights.tolist()))
    return found


def pack_settings(
    folder: Path,
    length: int = 16,
    order: Literal["shuffled", "as_given"] = "shuffled",
    too_long: Literal["refuse", "truncate", "drop"] = "refuse",
) -> PackSettings:
    """Packs of `length` tokens, indexes under `folder`/cache."""
    facts = TokenizerFacts(VOCABULARY, EOD, "0" * 64)
    return PackSettings(length, 3, facts, folder / "cache", order, too_long)
