"""Which documents of a corpus go, and which document stays for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_prep.curation.dedup.products import (
    Product,
    Settings,
    Shard,
    create,
    open_product,
    span_of,
)
from data_prep.curation.dedup.shingles import UInt64
from megatron_soaes.files import atomic_file

DECISIONS = "decisions"


@dataclass(frozen=True)
class Place:
    """A document: its shard and its number there, from 0."""

    shard: str
    document: int


def write_decisions(
    target: Path,
    settings: Settings,
    corpus: Shard,
    facts: dict[str, Any],
    *,
    removed: UInt64,
    kept: UInt64,
) -> Product:
    """Write that document `removed[i]` goes because `kept[i]` stays (numbers in the corpus).

    `corpus` and `facts` are as `corpus_of` and `corpus_facts` give them.
    """
    with create(target, DECISIONS, settings, corpus) as writer:
        order = np.argsort(removed, kind="stable")
        writer.append("removed", removed[order])
        writer.append("kept", kept[order])
        writer.facts |= facts
    return open_decisions(target)


def open_decisions(directory: Path) -> Product:
    """Decisions as they were written. Raises `UserError` for anything else."""
    return open_product(directory, DECISIONS)


def reasons_to_go(decisions: Product, shard: str) -> dict[int, Place]:
    """For each document of a shard that goes: the one that stays for it."""
    first, stop = span_of(decisions, shard)
    removed, kept = decisions.array("removed"), decisions.array("kept")
    low, high = np.searchsorted(removed, np.array([first, stop], dtype=np.uint64))
    pairs = zip(removed[low:high].tolist(), kept[low:high].tolist(), strict=True)
    return {number - first: _place(decisions, stays) for number, stays in pairs}


def copies_removed(decisions: Product, shard: str) -> dict[int, int]:
    """For each document of a shard that stays and has copies: how many went for it."""
    first, stop = span_of(decisions, shard)
    kept = np.asarray(decisions.array("kept"))
    here = kept[(kept >= first) & (kept < stop)]
    numbers, counts = np.unique(here, return_counts=True)
    return dict(zip((numbers - np.uint64(first)).tolist(), counts.tolist(), strict=True))


def clusters(decisions: Product) -> Iterator[tuple[Place, list[Place]]]:
    """Every document that others went for, in corpus order, and those that went."""
    removed, kept = decisions.array("removed"), decisions.array("kept")
    order = np.argsort(kept, kind="stable")
    ends = np.flatnonzero(np.diff(kept[order])) + 1
    for members in np.split(order, ends) if len(order) else []:
        stays = _place(decisions, int(kept[members[0]]))
        yield stays, [_place(decisions, int(number)) for number in removed[members]]


def write_report(decisions: Product, target: Path) -> None:
    """Write one JSON line a cluster: its size with the kept document, that one, and the removed."""
    with atomic_file(target, "wb") as stream:
        for kept, removed in clusters(decisions):
            record = {"size": len(removed) + 1, "kept": kept, "removed": removed}
            stream.write(orjson.dumps(record) + b"\n")


def _place(decisions: Product, number: int) -> Place:
    first: list[int] = decisions.facts["first"]
    position = int(np.searchsorted(first, number, side="right")) - 1
    return Place(decisions.facts["shards"][position], number - first[position])
