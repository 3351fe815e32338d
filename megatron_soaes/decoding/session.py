"""The rows of a cache that a batch of work goes through: what every model does with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from megatron_soaes.decoding.cache import KVCache
from megatron_soaes.decoding.interface import LogLikelihood, Sampling


class Session(ABC):
    """The rows of a model's cache while one batch of work goes through it.

    A model says how tokens become hidden states, and how these choose and judge tokens.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def begin(self, row: int) -> None:
        """Empty a row."""
        self._cache.lengths[row] = 0

    def move(self, source: int, target: int) -> None:
        """Copy the sequence of one row into another."""
        self._cache.move(source, target)

    @torch.inference_mode()
    def feed(
        self,
        first_row: int,
        tokens: Sequence[Sequence[int]],
        sampling: Sampling,
        draws: Sequence[float],
    ) -> list[int]:
        """Append tokens to rows `first_row`, `first_row` + 1, ...; the token to follow each.

        `draws` has a number in [0, 1) for each row, of which sampling makes the choice.
        """
        hidden = self._run(first_row, tokens)
        self._cache.extend(first_row, tokens)
        chosen = torch.empty(len(tokens), dtype=torch.int64, device=self._device)
        if hidden is not None:
            last = torch.tensor([len(row) - 1 for row in tokens], device=hidden.device)
            rows = torch.arange(len(tokens), device=hidden.device)
            chosen = self._choose(hidden[rows, last], sampling, draws)
        return cast(list[int], self._from_last_stage(chosen).tolist())

    @torch.inference_mode()
    def score(
        self, sequences: Sequence[Sequence[int]], counts: Sequence[int]
    ) -> list[LogLikelihood]:
        """Likelihood of the last `counts[i]` tokens of each sequence, on empty rows from 0 on."""
        rows, positions, labels = _scored_positions(sequences, counts)
        hidden = self._run(0, [sequence[:-1] for sequence in sequences])
        scores = torch.empty(2, len(labels), dtype=torch.float64, device=self._device)
        if hidden is not None:
            wanted = torch.tensor(labels, device=hidden.device)
            scores[0], scores[1] = self._judge(hidden[rows, positions], wanted)
        values, greedy = self._from_last_stage(scores).tolist()
        return _likelihoods_of(values, [bool(one) for one in greedy], counts)

    @property
    def _device(self) -> torch.device:
        return self._cache.keys.device

    def _run(self, first_row: int, tokens: Sequence[Sequence[int]]) -> Tensor | None:
        ids = torch.tensor(padded(tokens), device=self._device)
        return self._hidden(first_row, ids)

    @abstractmethod
    def _hidden(self, first_row: int, tokens: Tensor) -> Tensor | None:
        """Pass int64 [rows, m] tokens through the model, from `first_row` on.

        [rows, m, hidden], normed for the output layer; None where a later pipeline stage has them.
        """

    @abstractmethod
    def _choose(self, hidden: Tensor, sampling: Sampling, draws: Sequence[float]) -> Tensor:
        """The token to follow each of [rows, hidden] states, a draw a row: int64 [rows]."""

    @abstractmethod
    def _judge(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """How likely labels [n] are after [n, hidden] states: nats, and whether most likely."""

    def _from_last_stage(self, tensor: Tensor) -> Tensor:
        """What the last pipeline stage holds, on all stages; here there is one."""
        return tensor


def padded(sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """Sequences filled up on the right to the longest; no real token sees what is filled in."""
    width = max(len(sequence) for sequence in sequences)
    return [[*sequence, *[0] * (width - len(sequence))] for sequence in sequences]


def _scored_positions(
    sequences: Sequence[Sequence[int]], counts: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Rows, positions and labels of the last `counts[i]` tokens of each sequence, in order.

    The label of (row, position) is the token that the output there predicts.
    """
    rows: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        start = len(sequence) - count
        rows += [row] * count
        positions += range(start - 1, len(sequence) - 1)
        labels += sequence[start:]
    return rows, positions, labels


def _likelihoods_of(
    values: Sequence[float], greedy: Sequence[bool], counts: Sequence[int]
) -> list[LogLikelihood]:
    """Gather the log-probabilities of `_scored_positions` by sequence."""
    results, done = [], 0
    for count in counts:
        part = slice(done, done + count)
        results.append(LogLikelihood(sum(values[part]), all(greedy[part])))
        done += count
    return results
