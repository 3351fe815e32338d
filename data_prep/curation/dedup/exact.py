"""Copies of a whole text: of equal texts the first in the corpus stays.

Texts are equal when they are so in Unicode's form C with every run of white space as one space;
they are compared by their XXH3 hash of 128 bits (Collet, xxHash), so two different texts among a
billion meet with probability below 1e-20.

Memory: hashing takes 160 bytes a document of the shard (160 MB per million); merging takes 300 MB
whatever the corpus, and some 50 bytes for each copy found. On the disk a document takes 24 bytes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash

from data_prep.curation.dedup.decisions import DECISIONS, open_decisions, write_decisions
from data_prep.curation.dedup.merge import MERGE_KEYS, first_of_equal, key_ranges
from data_prep.curation.dedup.products import (
    Product,
    Shard,
    corpus_facts,
    corpus_of,
    create,
    is_finished,
    open_all,
)
from data_prep.curation.dedup.shingles import UInt64

HASHES = "text hashes"
SETTINGS = {"hash": "xxh3_128", "text": "NFC, white space as one space"}


def hash_shard(texts: Iterable[str], shard: Shard, target: Path) -> None:
    """Write the sorted hashes of a shard's texts to the directory `target`.

    Nothing is read when `target` has them already. Raises `UserError` when it holds anything else.
    """
    if is_finished(target, HASHES, SETTINGS, shard):
        return
    with create(target, HASHES, SETTINGS, shard) as writer:
        digests = b"".join(map(_digest, texts))
        pairs = np.frombuffer(digests, dtype=">u8").reshape(-1, 2).astype(np.uint64)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        writer.append("high", pairs[order, 0])
        writer.append("low", pairs[order, 1])
        writer.append("document", order.astype(np.uint64))
        writer.facts["documents"] = len(pairs)


def find_copies(shards: Sequence[Path], target: Path, budget: int = MERGE_KEYS) -> Product:
    """Decide over the hashes of all shards, given in corpus order, and write that to `target`.

    `budget` is how many documents are compared at a time. Raises `UserError` when one of `shards`
    is not the whole product of `hash_shard`.
    """
    products = open_all(shards, HASHES, SETTINGS)
    corpus, facts = corpus_of(products), corpus_facts(products)
    if is_finished(target, DECISIONS, SETTINGS, corpus):
        return open_decisions(target)
    highs = [product.array("high") for product in products]
    lows = [product.array("low") for product in products]
    documents = [product.array("document") for product in products]
    starts = np.array(facts["first"], dtype=np.uint64)
    removed, kept = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.uint64)]
    for slices in key_ranges(highs, budget):
        high = np.concatenate([high[part] for high, part in zip(highs, slices, strict=True)])
        low = np.concatenate([low[part] for low, part in zip(lows, slices, strict=True)])
        number = np.concatenate(
            [
                document[part] + start
                for document, start, part in zip(documents, starts, slices, strict=True)
            ]
        )
        gone, stays = _copies(high, low, number)
        removed.append(gone)
        kept.append(stays)
    gone, stays = np.concatenate(removed), np.concatenate(kept)
    return write_decisions(target, SETTINGS, corpus, facts, removed=gone, kept=stays)


def _copies(high: UInt64, low: UInt64, number: UInt64) -> tuple[UInt64, UInt64]:
    """The numbers of the documents whose hash an earlier one has, and those of the earliest."""
    order = np.lexsort((number, low, high))
    high, low, number = high[order], low[order], number[order]
    first = first_of_equal((high[1:] != high[:-1]) | (low[1:] != low[:-1]))
    copies = first != np.arange(len(number))
    return number[copies], number[first[copies]]


def _digest(text: str) -> bytes:
    spaced = " ".join(unicodedata.normalize("NFC", text).split())
    return xxhash.xxh3_128_digest(spaced.encode("utf-8", "surrogatepass"))
