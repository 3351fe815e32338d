"""Packed sequences of whole conversations, from the datasets that data_prep's SFT converter makes.

A dataset under the prefix P is P.bin/.idx (tokens), P_weights.bin/.idx (a float32 loss weight for
each token), P_sources.npy (the source of each conversation) and P.json, which describes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset
from numpy.typing import NDArray

from megatron_soaes import files
from megatron_soaes.data.indexed import TokenizerFacts, open_indexed
from megatron_soaes.data.packing import Packing, best_fit_decreasing, in_order
from megatron_soaes.data.sample import Sample
from megatron_soaes.errors import UserError


@dataclass(frozen=True)
class ConversationRange:
    """Conversations [first, last) of a dataset, under a name; of one of its sources, or of all."""

    name: str
    prefix: Path
    first_share: float = 0.0
    last_share: float = 1.0
    source: str | None = None


@dataclass(frozen=True)
class PackSettings:
    """How conversations become sequences."""

    sequence_length: int
    seed: int
    tokenizer: TokenizerFacts
    cache: Path
    """Folder of the packing indexes, shared by all ranks."""
    order: Literal["shuffled", "as_given"] = "shuffled"
    """shuffled: packed best fit, packs in a new random order each pass; as_given: neither."""
    too_long: Literal["refuse", "truncate", "drop"] = "refuse"
    """What happens to a conversation with more than `sequence_length` + 1 tokens."""


@dataclass(frozen=True)
class PackReport:
    """What became of the conversations of a range."""

    conversations: int
    truncated: int
    dropped: int
    """Longer than a sequence; of those that were to be truncated, the ones without a trained
    token in what was left."""
    packs: int
    efficiency: float
    """Share of the packs' tokens that belong to a conversation."""


class Packs:
    """A dataset of SFT samples: each a sequence of whole conversations, filled up at its end.

    Conversations of a pack do not see each other, and what fills it up weighs nothing. Indexes
    beyond one pass go round again.
    """

    def __init__(self, chosen: ConversationRange, settings: PackSettings, source: int) -> None:
        """Pack, or load the packing of an earlier run.

        Raises UserError when files are missing or belong to another tokenizer, when the range holds
        no conversation, and for a conversation that is too long where that is to be refused.
        """
        self._settings = settings
        self._source = source
        self._description = read_description(chosen.prefix)
        self._tokens, self._weights = open_conversations(chosen, settings.tokenizer)
        self._identity = _identity(chosen, settings)
        self._packing, self.report = self._cached_packing(chosen)
        self._shuffled = lru_cache(maxsize=2)(self._order_of_pass)

    def __len__(self) -> int:
        return len(self._packing)

    def __getitem__(self, index: int) -> Sample:
        passed, place = divmod(index, len(self._packing))
        if self._settings.order == "shuffled":
            place = int(self._shuffled(passed)[place])
        return self._sample(self._packing[place])

    def identity(self) -> dict[str, Any]:
        """What the packs hold, as JSON."""
        return self._identity

    def _order_of_pass(self, passed: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._settings.seed, passed]).permutation(len(self._packing))

    def _sample(self, conversations: NDArray[np.int64]) -> Sample:
        room = self._settings.sequence_length + 1
        tokens = np.full(room, self._settings.tokenizer.eod, dtype=np.int64)
        weights = np.zeros(room, dtype=np.float32)
        bounds = [0]
        for number in conversations.tolist():
            ids, weighed = self._tokens[number][:room], self._weights[number][:room]
            start, end = bounds[-1], bounds[-1] + len(ids)
            tokens[start:end], weights[start:end] = ids, weighed
            # Whatever stands before the first token belongs to another conversation.
            weights[start] = 0.0
            bounds.append(end)
        if bounds[-1] < room:
            bounds.append(room)
        return Sample(tokens, weights, np.array(bounds, dtype=np.int32), self._source)

    def _cached_packing(self, chosen: ConversationRange) -> tuple[Packing, PackReport]:
        file = self._settings.cache / f"packing-{files.sha256_json(self._identity)[:16]}.npz"
        if not file.exists():
            packing, report = self._pack(chosen)
            file.parent.mkdir(parents=True, exist_ok=True)
            with files.atomic_file(file, "wb") as stream:
                description = np.array(json.dumps(report.__dict__))
                np.savez(stream, items=packing.items, bounds=packing.bounds, report=description)
        with np.load(file) as stored:
            packing = Packing(stored["items"], stored["bounds"])
            return packing, PackReport(**json.loads(str(stored["report"])))

    def _pack(self, chosen: ConversationRange) -> tuple[Packing, PackReport]:
        room = self._settings.sequence_length + 1
        numbers = _numbers(chosen, self._description)
        lengths = self._tokens.sequence_lengths[numbers].astype(np.int64)
        too_long = lengths > room
        if too_long.any() and self._settings.too_long == "refuse":
            first = int(numbers[too_long][0])
            raise UserError(
                f"dataset {chosen.name} ({chosen.prefix})",
                f"{int(too_long.sum())} conversations with more than {room} tokens, the first "
                f"number {first} with {int(lengths[too_long][0])}",
                f"conversations that fit a sequence of {room - 1} tokens",
                "Raise sequence_length, or set the stage's too_long to truncate or drop.",
            )
        dropped = too_long
        if self._settings.too_long == "truncate":
            untrained = [not self._weights[int(n)][1:room].any() for n in numbers[too_long]]
            dropped = np.zeros_like(too_long)
            dropped[too_long] = untrained
        numbers, lengths = numbers[~dropped], np.minimum(lengths[~dropped], room)
        if not len(numbers):
            raise UserError(
                f"dataset {chosen.name} ({chosen.prefix})",
                f"no conversation that fits a sequence, of {len(dropped)}", "at least one",
                "Raise sequence_length, or change holdout or too_long.",
            )  # fmt: skip
        fit = best_fit_decreasing if self._settings.order == "shuffled" else in_order
        packing = fit(lengths, room)
        report = PackReport(
            conversations=len(numbers),
            truncated=int((too_long & ~dropped).sum()),
            dropped=int(dropped.sum()),
            packs=len(packing),
            efficiency=float(lengths.sum() / (len(packing) * room)),
        )
        return replace(packing, items=numbers[packing.items]), report


def read_description(prefix: Path) -> dict[str, Any]:
    """P.json of an SFT dataset; UserError when it is missing or of something else."""
    file = prefix.with_name(prefix.name + ".json")
    fix = "Give the path without suffix, or make it with data_prep/preprocess_sft.py."
    if not file.is_file():
        raise UserError(file, "no such file", "an SFT dataset", fix)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(file, f"invalid JSON ({error})", "a JSON object", fix) from None
    found = content if isinstance(content, dict) else {}
    if found.get("format") != "soaes-sft" or found.get("version") != 1:
        raise UserError(file, "another format", "soaes-sft, version 1", fix)
    return found


def sources_of(chosen: ConversationRange) -> list[str]:
    """Names of the sources that conversations of the range come from, in the dataset's order."""
    names = read_description(chosen.prefix)["sources"]
    first, last = _bounds(chosen, len(_source_ids(chosen.prefix)))
    found = set(np.unique(_source_ids(chosen.prefix)[first:last]).tolist())
    return [name for number, name in enumerate(names) if number in found]


def _source_ids(prefix: Path) -> NDArray[np.uint16]:
    file = prefix.with_name(prefix.name + "_sources.npy")
    try:
        ids: NDArray[np.uint16] = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            file, f"no readable array ({error})", "the source of each conversation",
            "Make the dataset again.",
        ) from None  # fmt: skip
    return ids


def _bounds(chosen: ConversationRange, total: int) -> tuple[int, int]:
    return round(chosen.first_share * total), round(chosen.last_share * total)


def _numbers(chosen: ConversationRange, description: dict[str, Any]) -> NDArray[np.int64]:
    """Numbers of the range's conversations, ascending."""
    ids = _source_ids(chosen.prefix)
    first, last = _bounds(chosen, len(ids))
    numbers = np.arange(first, last, dtype=np.int64)
    if chosen.source is None:
        return numbers
    wanted: NDArray[np.int64] = numbers[
        ids[first:last] == description["sources"].index(chosen.source)
    ]
    return wanted


def _files(prefix: Path) -> Iterator[Path]:
    for suffix in (".json", ".idx", "_weights.idx", "_sources.npy", ".bin", "_weights.bin"):
        yield prefix.with_name(prefix.name + suffix)


def _identity(chosen: ConversationRange, settings: PackSettings) -> dict[str, Any]:
    *described, tokens, weights = _files(chosen.prefix)
    return {
        "files": [files.sha256_file(file) for file in described],
        "bytes": [file.stat().st_size for file in (tokens, weights)],
        "range": [chosen.first_share, chosen.last_share, chosen.source],
        "sequence_length": settings.sequence_length,
        "order": settings.order,
        "too_long": settings.too_long,
        "seed": settings.seed,
        "filler": settings.tokenizer.eod,
    }


def open_conversations(
    chosen: ConversationRange, tokenizer: TokenizerFacts
) -> tuple[IndexedDataset, IndexedDataset]:
    """Tokens and weights of the whole dataset; UserError for files of another tokenizer, and for
    those that do not belong together."""
    where = f"dataset {chosen.name} ({chosen.prefix})"
    made_with = read_description(chosen.prefix)["tokenizer_sha256"]
    if made_with != tokenizer.sha256:
        raise UserError(
            where, f"tokens of tokenizer {made_with[:12]}",
            f"tokens of this model's, {tokenizer.sha256[:12]}",
            "Make it again with --tokenizer-model naming this model's folder.",
        )  # fmt: skip
    tokens = open_indexed(chosen.prefix)
    weights = open_indexed(chosen.prefix.with_name(chosen.prefix.name + "_weights"))
    fix = "Make the dataset again; its files do not belong together."
    if not np.array_equal(tokens.sequence_lengths, weights.sequence_lengths):
        raise UserError(
            where, "other lengths in _weights.idx than in .idx", "a weight for each token", fix
        )
    conversations, sources = len(tokens.sequence_lengths), len(_source_ids(chosen.prefix))
    if sources != conversations:
        raise UserError(
            where, f"{sources} entries in _sources.npy", f"{conversations}, one a conversation", fix
        )
    return tokens, weights
