"""Training windows over indexed datasets (.bin/.idx), by Megatron-Core's GPTDataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from numpy.typing import NDArray

from data_prep.indexed import open_indexed as check_indexed
from megatron_soaes import files
from megatron_soaes.data.sample import Sample, pretraining_sample
from megatron_soaes.errors import UserError


@dataclass(frozen=True)
class TokenizerFacts:
    """What a window needs to know of the tokenizer; stands in for Megatron-Core's tokenizer."""

    vocab_size: int
    eod: int
    sha256: str
    """Of its tokenizer.json."""
    pad: int = -1

    @property
    def unique_identifiers(self) -> dict[str, Any]:
        """Part of the name under which indexes are cached."""
        return {"vocab_size": self.vocab_size, "eod": self.eod}


@dataclass(frozen=True)
class WindowSettings:
    """How documents are cut into windows."""

    sequence_length: int
    seed: int
    tokenizer: TokenizerFacts
    cache: Path
    """Folder for the shuffled indexes, shared by all ranks."""


@dataclass(frozen=True)
class DocumentRange:
    """Documents [first, last) of one indexed dataset, under a name."""

    name: str
    prefix: Path
    first_share: float = 0.0
    last_share: float = 1.0

    def identity(self) -> dict[str, Any]:
        """What the range contains, as JSON: changes whenever other tokens would be read."""
        index = self.prefix.with_name(self.prefix.name + ".idx")
        tokens = self.prefix.with_name(self.prefix.name + ".bin")
        return {
            "idx": files.sha256_file(index),
            "bin_bytes": tokens.stat().st_size,
            "range": [self.first_share, self.last_share],
        }


class Windows:
    """A dataset of pre-training samples: fixed windows over shuffled documents."""

    def __init__(
        self, documents: DocumentRange, samples: int | None, settings: WindowSettings, source: int
    ) -> None:
        """Build or load the index; `samples` None means one pass. Collective on first build.

        Raises UserError when the files are missing, the range holds no document, the documents do
        not end with the tokenizer's end-of-document id, or there are too few tokens for one window.
        """
        self._source = source
        self._eod = settings.tokenizer.eod
        indexed, indices = open_documents(documents, settings)
        self._identity = documents.identity() | {
            "sequence_length": settings.sequence_length,
            "seed": settings.seed,
            "eod": settings.tokenizer.eod,
        }
        config = GPTDatasetConfig(
            random_seed=settings.seed,
            sequence_length=settings.sequence_length,
            split="1",
            tokenizer=settings.tokenizer,
            # Megatron-Core names an index after the path and the number of samples alone, and would
            # take that of other documents for it.
            path_to_cache=str(settings.cache / files.sha256_json(documents.identity())[:16]),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        self._dataset = GPTDataset(
            indexed, str(documents.prefix), indices, samples, Split.train, config
        )

    def __len__(self) -> int:
        return len(self._dataset)

    def identity(self) -> dict[str, Any]:
        """What the windows hold, as JSON."""
        return self._identity

    def __getitem__(self, index: int) -> Sample:
        window = self._dataset[index]
        tokens: NDArray[np.int64] = torch.cat((window["tokens"], window["labels"][-1:])).numpy()
        return pretraining_sample(tokens, self._eod, self._source)


def open_indexed(prefix: Path) -> IndexedDataset:
    """Memory-map a .bin/.idx pair; UserError when one is missing, or they contradict each other."""
    for suffix in (".idx", ".bin"):
        file = prefix.with_name(prefix.name + suffix)
        if not file.is_file():
            raise UserError(
                file, "no such file", "an indexed dataset",
                "Give the path without .bin/.idx, or make it with data_prep/preprocess_data.py.",
            )  # fmt: skip
    check_indexed(prefix)  # Megatron-Core's reader asserts, or maps what is not there
    return IndexedDataset(str(prefix))


def open_documents(
    documents: DocumentRange, settings: WindowSettings
) -> tuple[IndexedDataset, NDArray[np.int32]]:
    """A dataset and the numbers of the documents that the range takes of it.

    Raises UserError as `Windows` does.
    """
    indexed = open_indexed(documents.prefix)
    total = int(indexed.sequence_lengths.shape[0])
    first = round(documents.first_share * total)
    last = round(documents.last_share * total)
    indices = np.arange(first, last, dtype=np.int32)
    _check(documents, indexed, indices, settings)
    return indexed, indices


def _check(
    documents: DocumentRange,
    indexed: IndexedDataset,
    indices: NDArray[np.int32],
    settings: WindowSettings,
) -> None:
    lengths = indexed.sequence_lengths[indices]
    tokens = int(lengths.sum())
    if tokens < settings.sequence_length + 1:
        raise UserError(
            f"dataset {documents.name} ({documents.prefix})",
            f"{tokens} tokens in {len(indices)} documents",
            f"at least one window of {settings.sequence_length + 1}",
            "Add text, shorten sequence_length or change holdout.",
        )
    probed = [int(indexed[int(i)][-1]) for i in indices[lengths > 0][:100]]
    unended = [last for last in probed if last != settings.tokenizer.eod]
    if unended:
        raise UserError(
            f"dataset {documents.name} ({documents.prefix})",
            f"documents that end with token {unended[0]}",
            f"the end-of-document token {settings.tokenizer.eod} after every document",
            "Make it again with --append-eod and this model's tokenizer: without it documents "
            "would run into each other.",
        )
