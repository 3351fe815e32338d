"""The one sample type of every stage, and how samples become a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from numpy.typing import NDArray
from torch import Tensor

from megatron_soaes.data.teacher_store import Answers
from megatron_soaes.recipe.fp8 import Filling

NO_FILLING = Filling()


@dataclass(frozen=True)
class Sample:
    """A window of `length` + 1 tokens that holds one or more documents, or parts of them.

    The first `length` tokens are read, the last `length` are predicted.
    """

    tokens: NDArray[np.int64]
    """[length + 1] token ids."""
    loss_weights: NDArray[np.float32]
    """[length + 1]; entry i weighs the prediction of tokens[i]. The first token of a document (and
    of the window) has weight 0: nothing before it belongs to it."""
    cu_seqlens: NDArray[np.int32]
    """[documents + 1]; start of each document in the window, then length + 1."""
    source: int
    """Index of the dataset it came from."""

    @property
    def length(self) -> int:
        """Tokens read."""
        return len(self.tokens) - 1


class SampleSource(Protocol):
    """One dataset, cut into samples of one length."""

    def __len__(self) -> int:
        """Samples of one pass, or as many as were asked for."""

    def __getitem__(self, index: int) -> Sample:
        """The sample at a place of the order in which they are trained on."""

    def identity(self) -> dict[str, Any]:
        """What its samples hold, as JSON: changes whenever other samples would be read."""


def pretraining_sample(tokens: NDArray[np.int64], end_of_document: int, source: int) -> Sample:
    """A window of plain text: a document ends with `end_of_document`, every other token counts."""
    ends = np.flatnonzero(tokens == end_of_document) + 1
    starts = ends[ends < len(tokens)]
    weights = np.ones(len(tokens), dtype=np.float32)
    weights[0] = 0.0
    weights[starts] = 0.0
    cu_seqlens = np.concatenate(([0], starts, [len(tokens)])).astype(np.int32)
    return Sample(tokens, weights, cu_seqlens, source)


@dataclass(frozen=True)
class MicroBatch:
    """Samples laid end to end as one packed sequence of t tokens, on the device."""

    inputs: Tensor
    """[1, t] int64."""
    labels: Tensor
    """[1, t] int64; labels[i] is what inputs[i] should predict."""
    loss_weights: Tensor
    """[1, t] float32."""
    cu_seqlens: Tensor
    """[documents + 1] int32 starts of documents within the t tokens, then t."""
    longest: int
    """Tokens of the longest document."""
    sources: tuple[int, ...]
    """Dataset index of each sample."""
    places: Tensor
    """[tokens of the samples] int64; where each of them lies among the t."""
    answers: Answers | None = None
    """[1, t, ...] what a teacher said at each token; zeros at those filled in."""

    def packed_seq_params(self) -> PackedSeqParams:
        """The documents as Megatron-Core and Transformer Engine take them."""
        return PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=self.cu_seqlens,
            cu_seqlens_kv=self.cu_seqlens,
            max_seqlen_q=self.longest,
            max_seqlen_kv=self.longest,
        )


def collate(
    samples: Sequence[Sample],
    device: torch.device,
    filling: Filling = NO_FILLING,
    answers: Sequence[Answers] = (),
) -> MicroBatch:
    """Lay samples end to end; each window is cut to its inputs, so nothing crosses samples.

    `answers` are a teacher's to each sample, if it was asked.

    Every document is filled up as `filling` says. What is filled in comes last and weighs nothing,
    so it changes nothing for the document's own tokens.
    """
    bounds = [0]
    for sample in samples:
        offset = bounds[-1]
        # A document that starts with the window's extra token has no input in this window.
        starts = sample.cu_seqlens[1:-1]
        bounds.extend(int(offset + start) for start in starts if start < sample.length)
        bounds.append(offset + sample.length)
    lengths = np.diff(bounds)
    filled = np.concatenate(([0], np.cumsum(-(-lengths // filling.document) * filling.document)))
    filled[-1] += -filled[-1] % filling.whole
    places = np.arange(bounds[-1]) + np.repeat(filled[:-1] - bounds[:-1], lengths)

    def lay(parts: list[NDArray[np.int64]] | list[NDArray[np.float32]]) -> Tensor:
        values = np.concatenate(parts)
        laid = np.zeros((filled[-1], *values.shape[1:]), dtype=values.dtype)
        laid[places] = values
        return torch.from_numpy(laid).unsqueeze(0).to(device)

    def lay_answers() -> Answers:
        ids, log_probs, rest = (
            lay([getattr(answer, name).numpy() for answer in answers])
            for name in ("ids", "log_probs", "rest")
        )
        return Answers(ids, log_probs, rest)

    return MicroBatch(
        inputs=lay([sample.tokens[:-1] for sample in samples]),
        labels=lay([sample.tokens[1:] for sample in samples]),
        loss_weights=lay([sample.loss_weights[1:] for sample in samples]),
        cu_seqlens=torch.tensor(filled, dtype=torch.int32, device=device),
        longest=int(np.diff(filled).max()),
        sources=tuple(sample.source for sample in samples),
        places=torch.from_numpy(places).to(device),
        answers=lay_answers() if answers else None,
    )
