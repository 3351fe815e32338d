"""A dataset in parts for training, validation and test.

The part of a document is decided by a hash of its tokens: it stays the same when documents are
added, equal documents are never in two parts, and no list has to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_prep.datasets.checksums import HashedStream, described
from data_prep.datasets.manifest import manifest_of
from data_prep.datasets.writing import new_datasets, write_index, write_manifest
from data_prep.indexed import Index, IndexedDataset, open_indexed
from megatron_soaes.errors import UserError

DEFAULT_SEED = 1
ROUNDING = 1e-9
HASHES = 2**64


@dataclass(frozen=True)
class SplitSummary:
    """What a split made, by part."""

    prefixes: dict[str, Path]
    documents: dict[str, int]
    tokens: dict[str, int]


def part_of(tokens: npt.NDArray[Any], edges: npt.NDArray[np.float64], seed: int) -> int:
    """The part of a document: where its XXH3-64 falls among `edges`, rising fractions of 1."""
    fraction = xxhash.xxh3_64_intdigest(tokens.tobytes(), seed) / HASHES
    return min(int(np.searchsorted(edges, fraction, side="right")), len(edges) - 1)


def split(
    prefix: Path, fractions: Mapping[str, float], output: Path, seed: int = DEFAULT_SEED
) -> SplitSummary:
    """Write each part to `OUTPUT_NAME`. Fractions are of documents, about.

    Memory: 9 bytes a document and 12 a sequence. Raises UserError for fractions that are not above
    0 or do not sum to 1, for a part that would be empty, and when an output exists.
    """
    _check_fractions(fractions)
    dataset, known = open_indexed(prefix), manifest_of(prefix)
    known.require_text(prefix)
    edges = np.array(list(accumulate(fractions.values())))
    parts = np.fromiter(
        (part_of(document, edges, seed) for document in dataset), np.uint8, len(dataset)
    )
    counts = np.bincount(parts, minlength=len(fractions))
    for name, count in zip(fractions, counts.tolist(), strict=True):
        if not count:
            raise UserError(
                f"--fractions {name}", f"no document of {len(dataset)}", "at least one",
                "Give the part a larger fraction, or leave it out.",
            )  # fmt: skip
    prefixes = {name: output.with_name(f"{output.name}_{name}") for name in fractions}
    tokens = {}
    with new_datasets(list(prefixes.values())) as folder:
        files = _write_tokens(folder, dataset, parts, prefixes)
        for number, (name, target) in enumerate(prefixes.items()):
            index = _index_of(dataset, parts == number)
            tokens[name] = int(index.lengths.sum(dtype=np.int64))
            with (folder / f"{target.name}.idx").open("wb") as stream:
                hashed = HashedStream(stream)
                write_index(hashed, [index])
            files[f"{target.name}.idx"] = described([hashed.piece])
            made = {
                "split": {
                    "prefix": str(prefix), "files": known.files, "part": name,
                    "fractions": dict(fractions), "seed": seed,
                },
                "tokenizer": known.tokenizer,
                "files": {key: files[key] for key in files if Path(key).stem == target.name},
                "documents": int(counts[number]),
                "tokens": tokens[name],
            }  # fmt: skip
            write_manifest(folder, target.name, made)
    return SplitSummary(prefixes, dict(zip(fractions, counts.tolist(), strict=True)), tokens)


def _write_tokens(
    folder: Path,
    dataset: IndexedDataset,
    parts: npt.NDArray[np.uint8],
    prefixes: Mapping[str, Path],
) -> dict[str, dict[str, Any]]:
    with ExitStack() as opened:
        streams = [
            HashedStream(opened.enter_context((folder / f"{target.name}.bin").open("wb")))
            for target in prefixes.values()
        ]
        for document, part in zip(dataset, parts.tolist(), strict=True):
            streams[part].write(document)
    return {
        f"{target.name}.bin": described([stream.piece])
        for target, stream in zip(prefixes.values(), streams, strict=True)
    }


def _index_of(dataset: Index, chosen: npt.NDArray[np.bool_]) -> Index:
    """The index of a dataset of the chosen documents alone."""
    counts = np.diff(dataset.document_index)
    lengths = dataset.lengths[np.repeat(chosen, counts)]
    sizes = lengths.astype(np.int64) * dataset.dtype.itemsize
    boundaries = np.concatenate([[0], np.cumsum(counts[chosen])]).astype(np.int64)
    return Index(dataset.dtype, lengths, np.cumsum(sizes) - sizes, boundaries)


def _check_fractions(fractions: Mapping[str, float]) -> None:
    for name, fraction in fractions.items():
        if not 0 < fraction <= 1 or not name.isidentifier():
            raise UserError(
                f"--fractions {name}={fraction:g}", f"{name} and {fraction:g}",
                "a plain name and a number above 0", "Write it as train=0.98,valid=0.02.",
            )  # fmt: skip
    if not fractions or abs(sum(fractions.values()) - 1) > ROUNDING:
        raise UserError(
            "--fractions", f"a sum of {sum(fractions.values()):g}", "1", "Correct one of them."
        )
