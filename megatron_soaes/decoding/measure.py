"""Speculative against plain decoding: the same prompts, in turn, and whether the text is the same.

A machine's speed changes from minute to minute, so each prompt goes through every variant before
the next prompt starts, in another order each time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_soaes.decoding.draft_length import Round
from megatron_soaes.decoding.interface import Prompt, Sampling
from megatron_soaes.decoding.lean import LeanModel
from megatron_soaes.decoding.speculative import Speculation, SpeculativeDecoder, Step, Written

RESAMPLES = 4000
CONFIDENCE = 0.95
ROUNDING_STEPS = {torch.float32: 256, torch.bfloat16: 12}
"""In steps (eps) of the dtype at the largest logit: the gap between two logits that passes of
other lengths may turn around. Twice the most that a logit was seen to move, 110 and 5 steps, on
models with large random weights; fp32 errors gather from layer to layer, in bf16 the rounding of
the logits themselves is most of it."""


class Decoder(Protocol):
    """What is timed: `SpeculativeDecoder`, or another library behind its interface."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, rows: int = 1
    ) -> list[Written]:
        """Complete all prompts, `rows` at a time."""
        ...


@dataclass(frozen=True)
class TimeShares:
    """Where the time of a variant's runs went; the three add up to 1."""

    drafting: float
    """Passes of the draft, those over prompts included."""
    judging: float
    """Passes of the target, those over prompts included."""
    rest: float
    """Choosing, comparing and counting tokens between the passes."""


class ClockedDecoder:
    """A `SpeculativeDecoder` that knows where the time of all its runs went.

    The clock is read around each pass: meant for a device on which the work is done when a call
    returns, as on the CPU.
    """

    def __init__(self, target: LeanModel, draft: LeanModel, speculation: Speculation) -> None:
        self._target, self._draft = _ClockedModel(target), _ClockedModel(draft)
        self._decoder = SpeculativeDecoder(self._target, self._draft, speculation)
        self._seconds = 0.0

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, rows: int = 1
    ) -> list[Written]:
        """See `SpeculativeDecoder`."""
        started = time.perf_counter()
        written = self._decoder.generate(prompts, sampling, rows)
        self._seconds += time.perf_counter() - started
        return written

    @property
    def shares(self) -> TimeShares:
        """Of the runs so far, at least one."""
        drafting, judging = self._draft.seconds, self._target.seconds
        rest = self._seconds - drafting - judging
        return TimeShares(*(part / self._seconds for part in (drafting, judging, rest)))


class _ClockedModel(LeanModel):
    """Another model's weights, and how long passes over them took."""

    def __init__(self, model: LeanModel) -> None:
        vars(self).update(vars(model))
        self.seconds = 0.0

    def hidden(self, *arguments: Any, **options: Any) -> Tensor:
        started = time.perf_counter()
        found = super().hidden(*arguments, **options)
        self.seconds += time.perf_counter() - started
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        started = time.perf_counter()
        found = super().logits(hidden)
        self.seconds += time.perf_counter() - started
        return found


@dataclass(frozen=True)
class Timed:
    """One variant's texts, the same in every repeat, and times."""

    written: list[Written]
    seconds: NDArray[np.float64]
    """[repeats, groups of prompts] wall clock, prompts included."""
    tokens: NDArray[np.float64]
    """[groups] tokens generated, stop tokens included."""

    @property
    def seconds_per_token(self) -> float:
        """Over all prompts and repeats."""
        return float(self.seconds.mean(axis=0).sum() / self.tokens.sum())

    @property
    def rounds(self) -> list[Round]:
        """Of all prompts, one repeat."""
        return [one for written in self.written for one in written.rounds]


def in_turn(
    decoders: Mapping[str, Decoder],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    rows: int,
    repeats: int,
    note: Callable[[str], object],
) -> dict[str, Timed]:
    """Time every decoder on every group of `rows` prompts, `repeats` times."""
    groups = [prompts[start : start + rows] for start in range(0, len(prompts), rows)]
    for decoder in decoders.values():
        decoder.generate(groups[0], sampling, rows)  # memory and kernels are made on first use
    names = list(decoders)
    seconds = {name: np.zeros((repeats, len(groups))) for name in names}
    written: dict[str, list[Written]] = {name: [] for name in names}
    for repeat in range(repeats):
        for number, group in enumerate(groups):
            shift = (repeat + number) % len(names)
            for name in names[shift:] + names[:shift]:
                started = time.perf_counter()
                found = decoders[name].generate(group, sampling, rows)
                seconds[name][repeat, number] = time.perf_counter() - started
                if repeat == 0:
                    written[name] += found
        note(f"repeat {repeat + 1} of {repeats}: {len(prompts)} prompts, {len(names)} variants")
    return {
        name: Timed(written[name], seconds[name], _tokens(written[name], rows)) for name in names
    }


def _tokens(written: Sequence[Written], rows: int) -> NDArray[np.float64]:
    counts = [len(one.generated) for one in written]
    return np.array(
        [sum(counts[start : start + rows]) for start in range(0, len(counts), rows)], np.float64
    )


@dataclass(frozen=True)
class Speedup:
    """Plain over speculative time a token, with its 95 % interval."""

    value: float
    low: float
    high: float


def speedup(plain: Timed, other: Timed, seed: int = 0) -> Speedup:
    """Ratio of seconds a token, and a percentile bootstrap of prompts and, within each, repeats.

    Both variants' times of a drawn repeat go together (Efron & Tibshirani 1993, section 13.3).
    """
    random = np.random.default_rng(seed)
    repeats, groups = plain.seconds.shape
    drawn = random.integers(groups, size=(RESAMPLES, groups))
    turns = random.integers(repeats, size=(repeats, RESAMPLES, groups))

    def per_token(timed: Timed) -> NDArray[np.float64]:
        return timed.seconds[turns, drawn].mean(axis=0).sum(-1) / timed.tokens[drawn].sum(-1)

    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(per_token(plain) / per_token(other), [tail, 100 - tail])
    return Speedup(plain.seconds_per_token / other.seconds_per_token, float(low), float(high))


@dataclass(frozen=True)
class Divergence:
    """Where a speculative text first differs from the plain one."""

    prompt: int
    position: int
    plain: int
    speculative: int
    gap: float
    """How far the lower of the two tokens' logits lies under the best logit at that place."""
    bound: float
    """What rounding explains; 0 in exact mode, where nothing does."""

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding explains it."""
        return self.gap <= self.bound


@dataclass(frozen=True)
class Identity:
    """Whether greedy texts are the same as those of plain decoding in the same mode."""

    prompts: int
    equal: int
    divergences: tuple[Divergence, ...]
    equal_logits: int | None = None
    """Prompts whose logits are bitwise those of plain decoding; None where no mode promises it."""

    @property
    def holds(self) -> bool:
        """Whether the mode's promise is kept."""
        explained = all(one.is_near_tie for one in self.divergences)
        return explained and self.equal_logits in (None, self.prompts)


def identity(
    target: LeanModel,
    prompts: Sequence[Prompt],
    plain: Sequence[Written],
    other: Sequence[Written],
    *,
    exact: bool,
) -> Identity:
    """Compare greedy texts, stop tokens included.

    In fast mode a divergence is in order when both tokens' logits lie within the rounding bound of
    the best logit: `ROUNDING_STEPS` steps of the dtype (its eps) at the largest logit.
    """
    found = [
        _divergence(target, number, prompt, mine.generated, yours.generated, exact=exact)
        for number, (prompt, mine, yours) in enumerate(zip(prompts, plain, other, strict=True))
    ]
    differing = tuple(one for one in found if one is not None)
    return Identity(len(prompts), len(prompts) - len(differing), differing)


def logits_digests(
    decoder: SpeculativeDecoder, prompts: Sequence[Prompt], sampling: Sampling, rows: int
) -> list[str]:
    """SHA-256 of the logits that each prompt's tokens were chosen or judged by.

    Equal however many tokens a pass added, if and only if every logit is equal bit for bit.
    """
    digests = [hashlib.sha256() for _ in prompts]

    def watch(step: Step) -> None:
        digests[step.sequence].update(step.logits.cpu().contiguous().numpy().data)

    decoder.generate(prompts, sampling, rows, watch)
    return [one.hexdigest() for one in digests]


@torch.inference_mode()
def _divergence(
    target: LeanModel,
    number: int,
    prompt: Prompt,
    plain: tuple[int, ...],
    other: tuple[int, ...],
    *,
    exact: bool,
) -> Divergence | None:
    if plain == other:
        return None
    place = next(i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b)
    context = [*prompt, *plain[:place]]
    cache = target.new_cache(1, len(context))
    hidden = target.hidden(torch.tensor([context], device=target.device), cache)
    logits = target.logits(hidden[0, -1])
    lower = min(logits[plain[place]].item(), logits[other[place]].item())
    bound = 0.0 if exact else rounding_bound(logits.abs().max().item(), target.dtype)
    gap = logits.max().item() - lower
    return Divergence(number, place, plain[place], other[place], gap, bound)


def rounding_bound(largest: float, dtype: torch.dtype) -> float:
    """The largest gap between two logits that rounding may turn around."""
    return ROUNDING_STEPS[dtype] * torch.finfo(dtype).eps * largest
