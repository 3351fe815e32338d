"""What is in a dataset, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_prep.datasets.checksums import verify
from data_prep.datasets.manifest import DatasetManifest, manifest_of
from data_prep.indexed import IndexedDataset, open_indexed
from data_prep.tokenizer import load_tokenizer
from megatron_soaes.errors import UserError

PERCENTILES = (1, 10, 50, 90, 99)
BAR = 40


@dataclass(frozen=True)
class Inspection:
    """A dataset whose two files belong together."""

    prefix: Path
    dataset: IndexedDataset
    manifest: DatasetManifest

    def lines(self) -> Iterator[str]:
        """Counts, lengths and what the manifest says, for people."""
        dataset = self.dataset
        lengths = self.document_lengths()
        empty = int(np.count_nonzero(lengths == 0))
        yield (
            f"{self.prefix}: {len(dataset):,} documents ({empty:,} empty), "
            f"{len(dataset.lengths):,} sequences, {len(dataset.tokens):,} tokens, "
            f"{dataset.tokens.dtype.name}"
        )
        if len(lengths):
            marks = np.percentile(lengths, PERCENTILES).astype(int).tolist()
            shown = "  ".join(
                f"{p} %: {mark:,}" for p, mark in zip(PERCENTILES, marks, strict=True)
            )
            yield f"tokens a document  {shown}  longest: {int(lengths.max()):,}"
            yield from _histogram(lengths)
        tokenizer = self.manifest.tokenizer
        yield f"manifest: {self.manifest.path or 'none'}"
        if tokenizer:
            yield f"tokenizer: {tokenizer['path']} (SHA-256 {tokenizer['sha256'][:12]}...)"

    def document_lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens of each document, int64 [documents]."""
        ends = np.concatenate([[0], np.cumsum(self.dataset.lengths, dtype=np.int64)])
        return np.diff(ends[self.dataset.document_index])

    def document(self, number: int, tokenizer: Path | None = None) -> str:
        """The text of a document, special tokens written out.

        Raises UserError for a number that is none, for values that are no token ids, and without a
        tokenizer or with another than the manifest names.
        """
        if not 0 <= number < len(self.dataset):
            last = len(self.dataset) - 1
            raise UserError("--doc", str(number), f"0 to {last}", "Choose one of these.")
        tokens = self.dataset[number]
        if self.dataset.dtype.kind == "f" or (tokens < 0).any():
            raise UserError(
                self.prefix, f"{self.dataset.dtype.name} values that are no token ids",
                "whole numbers of 0 or more, to write them as text",
                "Loss weights (NAME_weights) have their tokens in NAME.",
            )  # fmt: skip
        return str(self._tokenizer(tokenizer).decode(tokens.tolist(), skip_special_tokens=False))

    def verify(self) -> str:
        """Compare both files with their checksums; raises UserError for a difference."""
        files = self.manifest.files
        for suffix, entry in files.items():
            verify(Path(f"{self.prefix}.{suffix}"), entry)
        if not files:
            return "no checksums are known: sizes and offsets agree, the tokens were not compared"
        missing = [suffix for suffix in ("bin", "idx") if suffix not in files]
        names = " and ".join(f".{suffix}" for suffix in files)
        return f"{names} are as the manifest says" + (
            f"; no checksum of .{missing[0]} is known" if missing else ""
        )

    def _tokenizer(self, path: Path | None) -> Tokenizer:
        known = self.manifest.tokenizer
        if path is None and known is None:
            raise UserError(
                self.prefix, "no manifest that names a tokenizer", "one, to write tokens as text",
                "Name it with --tokenizer.",
            )  # fmt: skip
        info, tokenizer = load_tokenizer(path or Path(str(known and known["path"])), False)
        if known and info.sha256 != known["sha256"]:
            raise UserError(
                info.path, f"a tokenizer with SHA-256 {info.sha256[:12]}...",
                f"that of the dataset, {known['sha256'][:12]}...", "Name that one.",
            )  # fmt: skip
        return tokenizer


def inspect(prefix: Path) -> Inspection:
    """Open a dataset. Raises UserError, which names a file that is cut short and where."""
    prefix = prefix.with_suffix("") if prefix.suffix in (".bin", ".idx") else prefix
    return Inspection(prefix, open_indexed(prefix), manifest_of(prefix))


def _histogram(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[str]:
    """Documents by the power of two that their tokens reach, a line each."""
    powers = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = np.bincount(powers)
    for power in range(int(powers.min()), len(counts)):
        bar = "#" * round(BAR * counts[power] / counts.max())
        yield f"{1 << power:>9,} - {(2 << power) - 1:<9,} {int(counts[power]):>9,} {bar}".rstrip()
