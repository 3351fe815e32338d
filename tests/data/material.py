"""Small indexed datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.indexed import token_dtype, write_index
from megatron_soaes.data.indexed import TokenizerFacts, WindowSettings

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


def settings(folder: Path, length: int = 16, seed: int = 3) -> WindowSettings:
    """Windows of `length` tokens, indexes under `folder`/cache."""
    return WindowSettings(length, seed, TokenizerFacts(VOCABULARY, EOD, "0" * 64), folder / "cache")
