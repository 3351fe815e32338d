"""What a stage trains on: which sample comes at which position, whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from megatron.core.datasets import helpers
from numpy.typing import NDArray

from megatron_soaes import files
from megatron_soaes.data.sample import Sample, SampleSource

SURPLUS = 1.005
"""Samples are asked for a little beyond a dataset's share: the blend is not exactly even."""

OpenSource = Callable[[int], SampleSource]
"""Opens a dataset that must give at least so many samples."""


class Mixture(Protocol):
    """Samples in the order of training; the same on every rank."""

    sources: list[str]
    """Names of all datasets."""
    source_ids: NDArray[np.int16]
    """[positions]; index into `sources` of the dataset that each sample comes from."""
    hash: str
    """Changes whenever another sample would come at any position."""

    def __getitem__(self, position: int) -> Sample:
        """The sample at a position."""


def consumed_by_source(mixture: Mixture, consumed: int) -> dict[str, int]:
    """How many of the first `consumed` samples came from each dataset of the mixture."""
    counts = np.bincount(mixture.source_ids[:consumed], minlength=len(mixture.sources))
    return {mixture.sources[i]: int(counts[i]) for i in np.unique(mixture.source_ids)}


class TrainingBlend:
    """`samples` positions, each given to one dataset, in proportion all along."""

    def __init__(
        self, datasets: Mapping[str, OpenSource], shares: Mapping[str, float], samples: int
    ) -> None:
        """Open each dataset that has a share; `shares` sum to 1 over a part of `datasets`.

        A dataset's source id is its place in `datasets`, so it does not depend on the blend.
        """
        names = list(shares)
        self.sources = list(datasets)
        self._assignment = np.zeros(samples, dtype=np.int16)
        self._index = np.zeros(samples, dtype=np.int64)
        weights = [shares[name] for name in names]
        helpers.build_blending_indices(
            self._assignment, self._index, weights, len(names), samples, False
        )
        self._datasets = [
            datasets[name](max(1, math.ceil(samples * shares[name] * SURPLUS))) for name in names
        ]
        self.source_ids = np.array([self.sources.index(name) for name in names], dtype=np.int16)[
            self._assignment
        ]
        self.hash = files.sha256_json(
            {
                # In order: the blend goes round the datasets in the order of the recipe.
                "datasets": [
                    [name, shares[name], source.identity()]
                    for name, source in zip(names, self._datasets, strict=True)
                ],
                "samples": samples,
            }
        )

    def __getitem__(self, position: int) -> Sample:
        dataset = self._datasets[int(self._assignment[position])]
        return dataset[int(self._index[position])]


class ShuffledUnion:
    """Exactly the samples of several mixtures, in one random order."""

    def __init__(self, parts: Sequence[Mixture], seed: int) -> None:
        self.sources = parts[0].sources
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part.source_ids) for part in parts)])
        self._order = np.random.default_rng(seed).permutation(int(self._starts[-1]))
        self.source_ids = np.concatenate([part.source_ids for part in parts])[self._order]
        self.hash = files.sha256_json({"parts": [part.hash for part in parts], "seed": seed})

    def __getitem__(self, position: int) -> Sample:
        place = int(self._order[position])
        part = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._parts[part][place - int(self._starts[part])]


class Passes:
    """The samples of a mixture over and over, each pass in a random order of its own."""

    def __init__(self, whole: Mixture, samples: int, seed: int) -> None:
        count = len(whole.source_ids)
        orders = [
            np.random.default_rng((seed, number)).permutation(count)
            for number in range(math.ceil(samples / count))
        ]
        self.sources = whole.sources
        self.order = np.concatenate(orders)[:samples]
        """[samples] int64; place in `whole` of the sample at each position."""
        self.source_ids = whole.source_ids[self.order]
        self.hash = files.sha256_json({"of": whole.hash, "samples": samples, "seed": seed})
        self.whole = whole

    def __getitem__(self, position: int) -> Sample:
        return self.whole[int(self.order[position])]


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
