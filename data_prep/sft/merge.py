"""The shards of all ranges as one SFT dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from data_prep.indexed import TokenLengths, concatenate, token_dtype, write_index
from data_prep.ranges import InputRange
from data_prep.sft.shards import SFTJob
from data_prep.shards import shard_files
from megatron_soaes.errors import UserError

LARGEST_SOURCE = np.iinfo(np.uint16).max


def read_lengths(job: SFTJob, ranges: list[InputRange]) -> TokenLengths:
    """The tokens of every conversation, int32 [conversations]."""
    parts = [np.fromfile(path, dtype="<i4") for path in shard_files(job, ranges, "lengths")]
    return np.concatenate([np.empty(0, dtype="<i4"), *parts])


def read_sources(job: SFTJob, ranges: list[InputRange]) -> tuple[list[str], npt.NDArray[np.uint16]]:
    """The names of the sources by their first conversation; their numbers, uint16 [conversations].

    Raises `UserError` when there are more sources than numbers.
    """
    numbers: dict[str, int] = {}
    parts = [np.empty(0, dtype=np.uint16)]
    paths = zip(
        shard_files(job, ranges, "source-names"), shard_files(job, ranges, "sources"), strict=True
    )
    for names_path, path in paths:
        names: list[str] = [orjson.loads(line) for line in names_path.read_bytes().splitlines()]
        local = np.array([numbers.setdefault(n, len(numbers)) for n in names], dtype=np.uint32)
        if len(numbers) > LARGEST_SOURCE + 1:
            raise UserError(
                f"--source-key {job.reader.source_key}",
                f"more than {LARGEST_SOURCE + 1} different sources",
                "a name for each kind of data",
                "Name a key whose values repeat.",
            )
        parts.append(local[np.fromfile(path, dtype="<u4")].astype(np.uint16))
    return list(numbers), np.concatenate(parts)


def merge_pairs(folder: Path, job: SFTJob, ranges: list[InputRange], conversations: int) -> None:
    """Write `tokens` and `weights`, `.bin` and `.idx`, of equal lengths."""

    def lengths() -> Iterator[TokenLengths]:
        return (np.fromfile(path, dtype="<i4") for path in shard_files(job, ranges, "lengths"))

    types = {"tokens": token_dtype(job.tokenizer.vocab_size), "weights": np.dtype("<f4")}
    for name, dtype in types.items():
        with (folder / f"{name}.bin").open("wb") as stream:
            concatenate(stream, shard_files(job, ranges, name))
        with (folder / f"{name}.idx").open("wb") as stream:
            write_index(stream, dtype, conversations, conversations, lengths)
