"""Signs the documents of a shard: two documents that share a band are candidates for a pair.

A document's sketch is its R-MinHash of `bands * rows` slots (rensa); two sketches agree in a slot
with a probability near the Jaccard similarity s of the documents' shingles, so the documents share
a band with probability 1 - (1 - s^rows)^bands (Leskovec, Rajaraman, Ullman, Mining of Massive
Datasets, 3.4): for 14 bands of 8 rows 0.99 at s = 0.86, a half at 0.69, 0.05 at 0.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rensa

from data_prep.curation.dedup.products import ProductWriter, Shard, create, is_finished
from data_prep.curation.dedup.shingles import (
    DEFAULT_UNITS,
    MODULUS,
    UNIT_BASE,
    Shingles,
    UInt64,
    batches,
    mixed,
    shingle,
)
from megatron_soaes.errors import UserError

BANDS = "bands"


@dataclass(frozen=True)
class MinHash:
    """How documents are signed. Raises `UserError` for a number below 1 (`seed`: below 0)."""

    bands: int = 14
    rows: int = 8
    units: int = DEFAULT_UNITS
    seed: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name == "seed" else 1
            if value < least:
                raise UserError(name, str(value), f"at least {least}", "Correct it.")

    def settings(self) -> dict[str, Any]:
        """What products are compared by."""
        return {**asdict(self), "sketch": f"R-MinHash {rensa.RMinHash.ALGORITHM_VERSION}"}

    def sign(self, shingles: Shingles) -> UInt64:
        """The band hashes of consecutive documents, uint64 [documents, bands]."""
        slots = self.bands * self.rows
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            shingles.hashes, shingles.starts, slots, self.seed
        )
        sketches = np.array(matrix.to_rows(), dtype=np.uint64)
        powers = [pow(UNIT_BASE, row, MODULUS) for row in range(self.rows)]
        bands = sketches.reshape(-1, self.bands, self.rows) * np.array(powers, dtype=np.uint64)
        return mixed(bands.sum(axis=2, dtype=np.uint64))


def sign_shard(texts: Iterable[str], shard: Shard, target: Path, minhash: MinHash) -> None:
    """Write the sorted band hashes of a shard's texts to the directory `target`.

    A text without a letter or a digit is in no band. Nothing is read when `target` has the bands
    already. Raises `UserError` when it holds anything else.

    The product takes 16 bytes a document and band (224 MB per million documents with 14 bands) and
    twice that while it is written. Memory: 120 MB up to a million documents of usual length in a
    shard, and 40 MB for each further million.
    """
    if is_finished(target, BANDS, minhash.settings(), shard):
        return
    with create(target, BANDS, minhash.settings(), shard) as writer:
        signed = writer.directory / "signed.tmp"
        numbers = [np.zeros(0, dtype=np.uint64)]
        documents = 0
        with signed.open("wb") as stream:
            for batch in batches(texts):
                shingles = shingle(batch, minhash.units)
                present = np.flatnonzero(np.diff(shingles.starts))
                stream.write(minhash.sign(shingles)[present].data)
                numbers.append(present.astype(np.uint64) + np.uint64(documents))
                documents += len(batch)
        _sort_bands(writer, signed, np.concatenate(numbers), minhash.bands)
        signed.unlink()
        writer.facts["documents"] = documents


def band_arrays(band: int) -> tuple[str, str]:
    """The arrays of a band in the product: its rising hashes, and their documents."""
    return f"hash-{band:03d}", f"document-{band:03d}"


def _sort_bands(writer: ProductWriter, signed: Path, numbers: UInt64, bands: int) -> None:
    """Write every band sorted by (hash, document); only one band is in memory at a time."""
    if len(numbers):
        table: npt.NDArray[np.uint64] = np.memmap(
            signed, dtype=np.uint64, mode="r", shape=(len(numbers), bands)
        )
    else:
        table = np.zeros((0, bands), dtype=np.uint64)
    for band in range(bands):
        hashes = np.ascontiguousarray(table[:, band])
        order = np.argsort(hashes, kind="stable")
        hash_name, document_name = band_arrays(band)
        writer.append(hash_name, hashes[order])
        writer.append(document_name, numbers[order])
