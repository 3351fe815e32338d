"""The mixture a stage trains on: which sample comes at which position, whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from megatron.core.datasets import helpers
from numpy.typing import NDArray

from megatron_soaes import files
from megatron_soaes.data.indexed import DocumentRange, Windows, WindowSettings
from megatron_soaes.data.sample import Sample

SURPLUS = 1.005
"""Windows are built for a little more than a dataset's share: the blend is not exactly even."""


class TrainingBlend:
    """`samples` positions, each given to one dataset; the same on every rank."""

    def __init__(
        self,
        documents: Mapping[str, DocumentRange],
        shares: Mapping[str, float],
        samples: int,
        settings: WindowSettings,
    ) -> None:
        """Build or load the indexes of each dataset; `shares` sum to 1 over a part of `documents`.

        A dataset's source id is its place in `documents`, so it does not depend on the blend.
        """
        names = list(shares)
        sources = list(documents)
        self.sources = sources
        self._assignment = np.zeros(samples, dtype=np.int16)
        self._index = np.zeros(samples, dtype=np.int64)
        weights = [shares[name] for name in names]
        helpers.build_blending_indices(
            self._assignment, self._index, weights, len(names), samples, False
        )
        self._datasets = [
            Windows(
                documents[name],
                max(1, math.ceil(samples * shares[name] * SURPLUS)),
                settings,
                sources.index(name),
            )
            for name in names
        ]
        self._names = names
        self.hash = files.sha256_json(
            {
                # In order: the blend goes round the datasets in the order of the recipe.
                "datasets": [[name, shares[name], documents[name].identity()] for name in names],
                "samples": samples,
                "sequence_length": settings.sequence_length,
                "seed": settings.seed,
                "eod": settings.tokenizer.eod,
            }
        )

    def __len__(self) -> int:
        return len(self._assignment)

    def __getitem__(self, position: int) -> Sample:
        dataset = self._datasets[int(self._assignment[position])]
        return dataset[int(self._index[position])]

    def consumed_by_source(self, consumed: int) -> dict[str, int]:
        """How many of the first `consumed` samples came from each dataset."""
        counts = np.bincount(self._assignment[:consumed], minlength=len(self._names))
        return {name: int(count) for name, count in zip(self._names, counts, strict=True)}


def positions_of_rank(
    first: int, global_batch: int, micro_batch: int, rank: int, replicas: int
) -> NDArray[np.int64]:
    """Sample positions of one replica in one step, shape [micro-batches, micro_batch].

    A global batch is positions first .. first + global_batch - 1; replica r takes the r-th
    contiguous part. The union over replicas does not depend on how many there are.
    """
    share = global_batch // replicas
    start = first + rank * share
    return np.arange(start, start + share, dtype=np.int64).reshape(-1, micro_batch)
