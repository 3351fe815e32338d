"""Does a text belong to the domain? A linear model over n-grams that says why.

The logit of a text is the model's bias plus the mean weight of its n-grams, those the model does
not know counting 0. A mean does not grow with length, and every n-gram's share in it is known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from data_prep.curation.dedup.shingles import UInt64, batches
from data_prep.curation.selection.features import MAX_UNITS, UnitHashes, hash_ngrams, hash_units
from megatron_soaes.errors import UserError
from megatron_soaes.files import write_json

Floats = npt.NDArray[np.float64]

TABLE_BITS = 21
EXPLAINED = 1024
"""The n-grams with the largest weights, which alone occur in explanations."""
REASONS = 5
"""N-grams that an explanation names for relevance, and against it."""


class ModelFile(BaseModel):
    """A stored model: a JSON file that people can read as well."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1]
    bias: float
    ngrams: dict[str, float]
    """The weight of each n-gram, as text."""
    settings: dict[str, Any]
    """`TrainingSettings`."""
    training: dict[str, Any]
    """The hash of the labelled file, and its number of texts."""
    quality: dict[str, Any]
    """`Quality` on held-out folds."""


@dataclass(frozen=True)
class Reason:
    """An n-gram of a text and what it adds to the text's logit."""

    ngram: str
    contribution: float


@dataclass(frozen=True)
class Relevance:
    """The model's probability that a text is relevant, and its strongest n-grams both ways."""

    score: float
    supporting: tuple[Reason, ...]
    opposing: tuple[Reason, ...]


class RelevanceModel:
    """A model ready to score. Scores do not depend on which texts are scored together."""

    def __init__(self, file: ModelFile) -> None:
        """Raises ValueError where the file holds what is no n-gram."""
        self.file = file
        self._ngrams = list(file.ngrams)
        weights = np.array(list(file.ngrams.values()), dtype=np.float32)
        hashes = hash_ngrams(self._ngrams)
        rising = np.argsort(np.abs(weights), kind="stable")
        self._table = np.zeros(1 << TABLE_BITS, dtype=np.float32)
        # Where two n-grams meet in a slot, the stronger stays.
        self._table[_slots(hashes[rising])] = weights[rising]
        strongest = rising[-EXPLAINED:]
        self._cutoff = np.abs(weights[strongest]).min(initial=np.inf)
        self._named = strongest[np.argsort(hashes[strongest])]
        self._named_hashes = hashes[self._named]
        self._weights = weights.astype(np.float64)

    def scores(self, texts: Sequence[str]) -> Floats:
        """The probability of each text to be relevant, float64 [texts]."""
        found = [self._evidence(hash_units(batch)).scores for batch in batches(texts)]
        return np.concatenate([np.zeros(0), *found])

    def judge(self, texts: Sequence[str]) -> list[Relevance]:
        """The scores with their reasons."""
        return [verdict for batch in batches(texts) for verdict in self._judge(hash_units(batch))]

    def _evidence(self, units: UnitHashes) -> _Evidence:
        total = np.zeros(len(units.hashes), dtype=np.float32)
        strong_places, strong_hashes = [], []
        for size in range(1, MAX_UNITS + 1):
            hashes = units.ngrams(size)
            weights = self._table[_slots(hashes)]
            weights[~units.begins(size)] = 0
            total += weights
            places = np.flatnonzero(np.abs(weights) >= self._cutoff)
            strong_places.append(places)
            strong_hashes.append(hashes[places])
        counts = np.maximum(units.counts(), 1)
        sums = np.zeros(len(counts))
        filled = np.diff(units.starts) > 0
        if filled.any():
            sums[filled] = np.add.reduceat(total.astype(np.float64), units.starts[:-1][filled])
        logits = self.file.bias + sums / counts
        scores = 0.5 * (1 + np.tanh(logits / 2))
        return _Evidence(
            scores, counts, np.concatenate(strong_places), np.concatenate(strong_hashes)
        )

    def _judge(self, units: UnitHashes) -> list[Relevance]:
        """One verdict a text of the batch."""
        evidence = self._evidence(units)
        slots = np.searchsorted(self._named_hashes, evidence.hashes)
        slots = np.minimum(slots, len(self._named) - 1)
        # Another n-gram may share the slot of a strong one; no text is explained by what it lacks.
        meant = self._named_hashes[slots] == evidence.hashes
        texts = np.searchsorted(units.starts, evidence.places[meant], side="right") - 1
        pairs, repeats = np.unique(
            texts * len(self._ngrams) + self._named[slots[meant]], return_counts=True
        )
        texts, ngrams = np.divmod(pairs, len(self._ngrams))
        added = repeats * self._weights[ngrams] / evidence.counts[texts]
        order = np.lexsort((ngrams, -added, texts))
        bounds = np.searchsorted(texts, np.arange(len(evidence.scores) + 1))
        return [
            self._verdict(score, ngrams[chosen], added[chosen])
            for score, first, stop in zip(
                evidence.scores.tolist(), bounds[:-1], bounds[1:], strict=True
            )
            for chosen in [order[first:stop]]
        ]

    def _verdict(self, score: float, ngrams: npt.NDArray[np.int64], added: Floats) -> Relevance:
        """`added` falls."""
        reasons = [
            Reason(self._ngrams[ngram], round(value, 6))
            for ngram, value in zip(
                np.concatenate([ngrams[:REASONS], ngrams[-REASONS:]]).tolist(),
                np.concatenate([added[:REASONS], added[-REASONS:]]).tolist(),
                strict=True,
            )
        ]
        half = len(reasons) // 2
        return Relevance(
            score,
            tuple(reason for reason in reasons[:half] if reason.contribution > 0),
            tuple(reason for reason in reversed(reasons[half:]) if reason.contribution < 0),
        )


@dataclass(frozen=True)
class _Evidence:
    """Scores and n-gram counts of the texts of a batch, and its occurrences of large weights."""

    scores: Floats
    counts: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    hashes: UInt64


def save_model(file: ModelFile, path: Path) -> None:
    """Write a model; the same model is always the same bytes."""
    write_json(path, file.model_dump())


def load_model(path: Path) -> RelevanceModel:
    """Read a model. Raises UserError for a file that is none."""
    try:
        return RelevanceModel(ModelFile.model_validate(json.loads(path.read_text("utf-8"))))
    except (OSError, ValueError) as error:
        found = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        fix = "Train one: soaes prep relevance train."
        raise UserError(path, found, "a relevance model", fix) from None


def _slots(hashes: UInt64) -> npt.NDArray[np.int64]:
    return (hashes >> np.uint64(64 - TABLE_BITS)).astype(np.int64)
