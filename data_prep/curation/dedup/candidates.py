"""Candidates for near copies: the documents of all shards that are connected by shared bands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_prep.curation.dedup.merge import MERGE_KEYS, first_of_equal, key_ranges
from data_prep.curation.dedup.minhash import BANDS, MinHash, band_arrays
from data_prep.curation.dedup.products import (
    Product,
    Shard,
    corpus_facts,
    corpus_of,
    create,
    is_finished,
    open_all,
    open_product,
    span_of,
)
from data_prep.curation.dedup.shingles import UInt64, batches, shingle
from data_prep.curation.dedup.union_find import DisjointSets
from megatron_soaes.errors import UserError

CANDIDATES = "candidates"
SHINGLES = "candidate shingles"


def propose(
    shards: Sequence[Path], target: Path, minhash: MinHash, budget: int = MERGE_KEYS
) -> Product:
    """Connect the documents that share a band; `shards` are in corpus order.

    Writes to `target` the numbers in the corpus of all connected documents (`document`, uint64,
    rising) and the smallest number of what each is connected with (`root`, uint64). `budget` is
    how many documents of a band are compared at a time.

    Memory: 32 MB per million documents of the corpus, at least 300 MB (mapped products are not
    counted: each band is read once, from front to back). Raises
    `UserError` when one of `shards` is not a whole product of `sign_shard` with these settings.
    """
    products = open_all(shards, BANDS, minhash.settings())
    corpus, facts = corpus_of(products), corpus_facts(products)
    if not is_finished(target, CANDIDATES, minhash.settings(), corpus):
        connected = DisjointSets(facts["documents"])
        starts = np.array(facts["first"], dtype=np.uint64)
        for band in range(minhash.bands):
            _connect_band(connected, products, starts, band, budget)
        documents, roots = connected.members()
        with create(target, CANDIDATES, minhash.settings(), corpus) as writer:
            writer.append("document", documents.astype(np.uint64))
            writer.append("root", roots.astype(np.uint64))
            writer.facts |= facts
    return open_candidates(target)


def open_candidates(directory: Path) -> Product:
    """Candidates as they were written. Raises `UserError` for anything else."""
    return open_product(directory, CANDIDATES)


def gather_shard(texts: Iterable[str], shard: Shard, candidates: Path, target: Path) -> None:
    """Write the distinct shingles of a shard's candidates to `target`.

    `texts` are all texts of the shard, as they were signed. The product takes 8 bytes a shingle of
    the candidates; memory does not grow with it. Raises `UserError` when the shard has another
    number of documents than were signed, and when `target` holds anything else.
    """
    proposed = open_candidates(candidates)
    first, stop = span_of(proposed, shard.name)
    members = candidates_between(proposed, first, stop) - np.uint64(first)
    settings = gathering_settings(proposed, members)
    if is_finished(target, SHINGLES, settings, shard):
        return
    with create(target, SHINGLES, settings, shard) as writer:
        writer.append("size", np.zeros(0, dtype=np.uint64))
        writer.append("shingle", np.zeros(0, dtype=np.uint64))
        for batch in batches(_selected(texts, members, stop - first, shard)):
            shingles = shingle(batch, proposed.settings["units"])
            sets = [shingles.of(document) for document in range(len(batch))]
            writer.append("size", np.array([len(found) for found in sets], dtype=np.uint64))
            writer.append("shingle", np.concatenate(sets))
        writer.facts["documents"] = stop - first


def candidates_between(proposed: Product, first: int, stop: int) -> UInt64:
    """The candidates with numbers in the corpus from `first` to before `stop`, rising."""
    documents = proposed.array("document")
    low, high = np.searchsorted(documents, np.array([first, stop], dtype=np.uint64))
    return np.asarray(documents[low:high])


def gathering_settings(proposed: Product, members: UInt64) -> dict[str, Any]:
    """What the gathered shingles of candidates `members` (numbers in the shard) depend on."""
    return {
        "units": proposed.settings["units"],
        "members": xxhash.xxh3_128_hexdigest(np.ascontiguousarray(members).data),
    }


def _connect_band(
    connected: DisjointSets, products: Sequence[Product], starts: UInt64, band: int, budget: int
) -> None:
    hash_name, document_name = band_arrays(band)
    hashes = [product.array(hash_name) for product in products]
    documents = [product.array(document_name) for product in products]
    for slices in key_ranges(hashes, budget):
        keys = np.concatenate([keys[part] for keys, part in zip(hashes, slices, strict=True)])
        numbers = np.concatenate(
            [
                document[part] + start
                for document, start, part in zip(documents, starts, slices, strict=True)
            ]
        )
        order = np.argsort(keys, kind="stable")
        keys, numbers = keys[order], numbers[order].astype(np.int64)
        first = first_of_equal(keys[1:] != keys[:-1])
        shared = first != np.arange(len(numbers))
        connected.join(numbers[first[shared]], numbers[shared])


def _selected(texts: Iterable[str], members: UInt64, documents: int, shard: Shard) -> Iterator[str]:
    wanted = set(members.tolist())
    count = 0
    for number, text in enumerate(texts):
        count += 1
        if number in wanted:
            yield text
    if count != documents:
        raise UserError(
            f"shard '{shard.name}'",
            f"{count} documents",
            f"the {documents} that were signed",
            "Sign it again, and propose again.",
        )
