"""Which of the connected candidates are near copies, and which document of each cluster stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_prep.curation.dedup.candidates import (
    SHINGLES,
    candidates_between,
    gathering_settings,
    open_candidates,
)
from data_prep.curation.dedup.decisions import DECISIONS, open_decisions, write_decisions
from data_prep.curation.dedup.products import (
    Product,
    is_finished,
    open_all,
    span_of,
)
from data_prep.curation.dedup.shingles import UInt64, jaccard
from megatron_soaes.errors import UserError

MIN_JACCARD = 0.5
Scores = Sequence[npt.NDArray[np.float64]]
"""One array a shard, in corpus order: the score of each of its documents."""


def decide(
    candidates: Path,
    gathered: Sequence[Path] | None,
    target: Path,
    min_jaccard: float = MIN_JACCARD,
    scores: Scores | None = None,
) -> Product:
    """Decide which candidates go, and write that to `target`.

    Connected candidates are taken in the order of their preference: the highest score, then the
    first in the corpus. The first stays; those whose shingles have a Jaccard similarity of at least
    `min_jaccard` with it go; the rest begin again among themselves. So every document that goes is
    that similar to the one that stays for it, exactly (up to collisions of 64-bit hashes). With
    `gathered` None nothing is compared, and one document stays of all that are connected.

    `gathered` are the products of `gather_shard` in corpus order. Memory: 32 bytes a candidate and
    two documents' shingles. Time grows with candidates times documents that stay among those
    connected to each other. Raises `UserError` when a product does not belong to `candidates`, and
    when `scores` are not one finite number for every document.
    """
    proposed = open_candidates(candidates)
    settings: dict[str, Any] = {
        **proposed.settings,
        "min_jaccard": None if gathered is None else min_jaccard,
        "scores": None if scores is None else _scores_hash(scores),
    }
    documents = np.asarray(proposed.array("document"))
    preference = _preference(proposed, documents, scores)
    sets = None if gathered is None else _CandidateSets(proposed, gathered)
    if is_finished(target, DECISIONS, settings, proposed.shard):
        return open_decisions(target)
    removed, kept = [], []
    for members in _groups(np.asarray(proposed.array("root")), preference):
        for stays, gone in _split(members, sets, min_jaccard):
            removed.append(documents[gone])
            kept.append(np.full(len(gone), documents[stays]))
    none = np.zeros(0, dtype=np.uint64)
    return write_decisions(
        target,
        settings,
        proposed.shard,
        proposed.facts,
        removed=np.concatenate([none, *removed]),
        kept=np.concatenate([none, *kept]),
    )


class _CandidateSets:
    """The shingles of the candidates, by their place among all candidates."""

    def __init__(self, proposed: Product, gathered: Sequence[Path]) -> None:
        products = open_all(gathered, SHINGLES)
        names = [product.shard.name for product in products]
        if names != proposed.facts["shards"]:
            raise UserError(
                proposed.directory,
                f"shingles gathered from {names}",
                f"those of its shards, in their order: {proposed.facts['shards']}",
                "Gather every shard.",
            )
        for product in products:
            _check_gathered(product, proposed)
        self._shingles = [product.array("shingle") for product in products]
        sizes = [np.asarray(product.array("size")) for product in products]
        self._ends = [np.cumsum(size) for size in sizes]
        self._first = np.concatenate([[0], np.cumsum([len(size) for size in sizes])])

    def __getitem__(self, place: int) -> UInt64:
        shard = int(np.searchsorted(self._first, place, side="right")) - 1
        here = place - int(self._first[shard])
        ends = self._ends[shard]
        start = int(ends[here - 1]) if here else 0
        return np.asarray(self._shingles[shard][start : int(ends[here])])


def _check_gathered(product: Product, proposed: Product) -> None:
    first, stop = span_of(proposed, product.shard.name)
    members = candidates_between(proposed, first, stop) - np.uint64(first)
    if product.settings != gathering_settings(proposed, members):
        raise UserError(
            product.directory,
            "the shingles of other candidates",
            f"those of {proposed.directory}",
            "Gather the shard again.",
        )


def _groups(roots: UInt64, preference: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.int64]]:
    """The places of connected candidates, the preferred ones first."""
    order = np.lexsort((np.arange(len(roots)), -preference, roots))
    ends = np.flatnonzero(np.diff(roots[order])) + 1
    yield from np.split(order, ends) if len(order) else []


def _split(
    members: npt.NDArray[np.int64], sets: _CandidateSets | None, min_jaccard: float
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Documents that stay, each with those that go for it."""
    while len(members) > 1:
        stays, others = int(members[0]), members[1:]
        if sets is None:
            yield stays, others
            return
        shingles = sets[stays]
        similar = np.array([jaccard(shingles, sets[place]) >= min_jaccard for place in others])
        if similar.any():
            yield stays, others[similar]
        members = others[~similar]


def _preference(
    proposed: Product, documents: UInt64, scores: Scores | None
) -> npt.NDArray[np.float64]:
    if scores is None:
        return np.zeros(len(documents))
    found = [len(of_shard) for of_shard in scores]
    edges = [*proposed.facts["first"], proposed.documents]
    if found != np.diff(edges).tolist():
        raise UserError(
            "scores",
            f"{found} of them",
            f"{np.diff(edges).tolist()} (documents a shard)",
            "Score all.",
        )
    everything = np.concatenate(scores)
    if not np.isfinite(everything).all():
        raise UserError("scores", "one that is not finite", "finite numbers", "Correct them.")
    return np.asarray(everything[documents.astype(np.int64)])


def _scores_hash(scores: Scores) -> str:
    digest = xxhash.xxh3_128()
    for of_shard in scores:
        digest.update(np.ascontiguousarray(of_shard, dtype=np.float64).data)
    return digest.hexdigest()
