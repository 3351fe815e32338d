"""A small draft proposes, the target judges several tokens in one pass.

Each sequence keeps its own number of tokens: rows of the batch advance at their own pace, and what
was not accepted is taken back by lowering a cache's length. See `acceptance_rule` for why the
result is the target's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from megatron_soaes.decoding.acceptance_rule import judge, judge_greedy
from megatron_soaes.decoding.batching import check_prompts
from megatron_soaes.decoding.cache import KVCache
from megatron_soaes.decoding.draft_length import (
    AdaptiveLength,
    DraftLength,
    FixedLength,
    PassCosts,
    Round,
)
from megatron_soaes.decoding.interface import Prompt, Sampling
from megatron_soaes.decoding.lean import LeanModel
from megatron_soaes.decoding.sampling import draw, probabilities, uniform_draws
from megatron_soaes.decoding.session import padded
from megatron_soaes.errors import UserError


@dataclass(frozen=True)
class Speculation:
    """How to speculate, and which promise about the result is kept.

    Judging several tokens in one pass is not, in floating point, the arithmetic of one token a
    pass. In fast mode greedy text therefore equals that of plain decoding up to near ties of the
    two best logits. In exact mode every target pass, plain or not, has one shape (`window` tokens,
    one number of keys), so that logits, and with them the text, are bitwise equal.
    """

    draft_length: int
    """Tokens drafted for each target pass; 0 is plain decoding."""
    exact: bool = False
    window: int = 8
    """Tokens of every target pass in exact mode, filled up where fewer are judged."""
    adaptive: PassCosts | None = None
    """With measured costs the length follows the acceptance, `draft_length` at most, down to 0."""

    def __post_init__(self) -> None:
        checks = {
            "draft_length": (self.draft_length >= 0, self.draft_length, "0 or more"),
            "window": (
                not self.exact or self.window > self.draft_length, self.window,
                f"at least {self.draft_length + 1}, the drafted tokens and one",
            ),
            "adaptive": (
                self.adaptive is None or self.adaptive.longest == self.draft_length,
                "other costs", f"those of 1 to {self.draft_length + 1} tokens",
            ),
        }  # fmt: skip
        for name, (right, found, expected) in checks.items():
            if not right:
                raise UserError(f"speculation.{name}", str(found), expected, "Change the value.")

    def policy(self) -> DraftLength:
        """A new policy for one run."""
        if self.adaptive is None:
            return FixedLength(self.draft_length)
        return AdaptiveLength(self.adaptive)


@dataclass(frozen=True)
class Step:
    """What one target pass added to one sequence."""

    sequence: int
    tokens: tuple[int, ...]
    """New tokens, a stop token not among them."""
    accepted: int
    """So many of them, from the first on, were the draft's."""
    logits: Tensor
    """fp32 [len(tokens), vocabulary] of the target, by which each was chosen or judged."""


Watch = Callable[[Step], object]


@dataclass(frozen=True)
class Written:
    """What was written after a prompt."""

    tokens: tuple[int, ...]
    """Without the prompt and without the stop token."""
    stop: int | None
    """The stop token that ended it; None at `max_new_tokens`."""
    rounds: tuple[Round, ...]

    @property
    def generated(self) -> tuple[int, ...]:
        """The tokens and the stop token: what the target's passes were for."""
        return self.tokens if self.stop is None else (*self.tokens, self.stop)


class SpeculativeDecoder:
    """A target with a draft, or without one: plain decoding is a draft length of 0."""

    def __init__(
        self, target: LeanModel, draft: LeanModel | None, speculation: Speculation
    ) -> None:
        """The models must share a tokenizer (`pairing`); their dtypes may differ."""
        if draft is None and speculation.draft_length:
            raise ValueError(f"{speculation.draft_length} drafted tokens without a draft")
        self._target = target
        self._draft = draft if speculation.draft_length else None
        self._speculation = speculation

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        rows: int = 1,
        watch: Watch | None = None,
    ) -> list[Written]:
        """Complete all prompts, `rows` at a time; `watch` is called after each pass.

        Sampled text is a function of seed, prompt and draft lengths. Raises UserError for prompts
        that one of the models cannot take.
        """
        for model in (self._target, self._draft):
            if model is not None:
                check_prompts(prompts, model, sampling.max_new_tokens)
        policy = self._speculation.policy()
        sequences = [
            _Sequence(number, list(prompt), len(prompt), _points(sampling, prompt))
            for number, prompt in enumerate(prompts)
        ]
        for start in range(0, len(sequences), rows):
            batch = _Batch(
                self._target, self._draft, self._speculation, sampling,
                sequences[start : start + rows],
            )  # fmt: skip
            while batch.is_live():
                batch.advance(policy, watch)
        return [Written(tuple(s.new), s.stop, tuple(s.rounds)) for s in sequences]


@dataclass
class _Points:
    """Uniform numbers of one sequence, a function of seed, prompt and position.

    A position's numbers are looked at again when its token was dropped with a rejected draft; what
    has been written until then does not depend on them.
    """

    following: NDArray[np.float64]
    """[positions]; plain decoding draws with these, as `LeanGenerator` does."""
    draft: NDArray[np.float64]
    """[positions, 2]: the draft's draw, and whether it stays."""


def _points(sampling: Sampling, prompt: Prompt) -> _Points | None:
    if sampling.greedy:
        return None
    count = sampling.max_new_tokens
    # No prompt ends with a token of -1, so these are the numbers of no other prompt.
    pairs = uniform_draws(sampling.seed, [*prompt, -1], 2 * count).reshape(count, 2)
    return _Points(uniform_draws(sampling.seed, prompt, count), pairs)


@dataclass
class _Sequence:
    number: int
    tokens: list[int]
    prompt_length: int
    points: _Points | None
    rounds: list[Round] = field(default_factory=list)
    stop: int | None = None
    live: bool = True

    @property
    def new(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def position(self) -> int:
        """How many tokens are written."""
        return len(self.tokens) - self.prompt_length

    def take(self, drafted: list[int], accepted: int, following: int, sampling: Sampling) -> int:
        """Add the outcome of a pass; returns how many tokens it added."""
        remaining = sampling.max_new_tokens - self.position
        offered = [*drafted[:accepted], following]
        stop = next((i for i, token in enumerate(offered) if token in sampling.stop_ids), None)
        used = len(offered) if stop is None else stop + 1
        if stop is not None:
            self.stop = offered[stop]
        self.tokens += offered[:stop]
        self.live = stop is None and used < remaining
        # A draft that goes on after a stop token, or up to the last place, was not asked for.
        wanted = used if used <= accepted else min(len(drafted), remaining - 1)
        kept = min(accepted, used)
        self.rounds.append(Round(wanted, min(accepted + 1, used, wanted), kept, used))
        return len(offered[:stop])


class _Batch:
    """Sequences in the rows of a cache of each model."""

    def __init__(
        self,
        target: LeanModel,
        draft: LeanModel | None,
        speculation: Speculation,
        sampling: Sampling,
        sequences: list[_Sequence],
    ) -> None:
        self._target, self._draft = target, draft
        self._speculation, self._sampling = speculation, sampling
        self._rows = list(sequences)
        longest = max(len(s.tokens) for s in sequences) + sampling.max_new_tokens
        capacity = longest + max(speculation.window, speculation.draft_length + 1)
        self._cache = self._new_cache(target, capacity)
        self._draft_cache = None if draft is None else self._new_cache(draft, capacity)

    def _new_cache(self, model: LeanModel, capacity: int) -> KVCache:
        """A cache with the prompts but for their last tokens.

        Each prompt goes alone, so that its keys do not depend on its neighbours. A single sequence
        in fast mode needs no pass of its own: its first tokens are judged with the prompt.
        """
        cache = model.new_cache(len(self._rows), capacity)
        if self._speculation.exact or len(self._rows) > 1:
            for row, sequence in enumerate(self._rows):
                known = sequence.tokens[:-1]
                if known:
                    model.hidden(torch.tensor([known], device=model.device), cache, row)
                cache.lengths[row] = len(known)
        return cache

    def is_live(self) -> bool:
        """Whether a sequence is not at its end."""
        return any(s.live for s in self._rows)

    def advance(self, policy: DraftLength, watch: Watch | None) -> None:
        """Draft, judge, keep: one target pass."""
        limit = self._sampling.max_new_tokens - min(s.position for s in self._rows if s.live)
        length = min(policy.next(), limit - 1)
        drafted, proposed = self._propose(length)
        logits = self._judged_logits(drafted)
        accepted, following = self._judge(logits, drafted, proposed)
        tokens = cast(list[list[int]], drafted.tolist())
        outcome = zip(tokens, accepted.tolist(), following.tolist(), strict=True)
        judged = right = 0
        for row, (guesses, stayed, token) in enumerate(outcome):
            sequence = self._rows[row]
            if not sequence.live:
                continue
            self._rewind(row, len(sequence.tokens) + stayed)
            added = sequence.take(guesses, stayed, token, self._sampling)
            last = sequence.rounds[-1]
            judged, right = judged + last.judged, right + last.accepted
            if watch is not None:
                kept = tuple(sequence.tokens[len(sequence.tokens) - added :])
                watch(Step(sequence.number, kept, min(last.accepted, added), logits[row, :added]))
        policy.learn(judged, right)
        self._leave_out_ended()

    def _propose(self, length: int) -> tuple[Tensor, Tensor | None]:
        """Drafted tokens, int64 [rows, length], and, sampled, what they were drawn from, fp64."""
        rows, draft, cache = len(self._rows), self._draft, self._draft_cache
        if length == 0 or draft is None or cache is None:
            return torch.empty((rows, 0), dtype=torch.int64, device=self._target.device), None
        fed = [self._unseen(row, cache) for row in range(rows)]
        # The target may write a padding id that the draft's vocabulary does not have.
        ids = torch.tensor(padded(fed), device=draft.device).clamp_(max=draft.vocab_size - 1)
        last = torch.tensor([len(tokens) - 1 for tokens in fed], device=draft.device)
        row = torch.arange(rows, device=draft.device)
        chosen, distributions = [], []
        for place in range(length):
            hidden = draft.hidden(ids, cache)
            hidden = hidden[row, last] if place == 0 else hidden[:, 0]
            cache.extend(0, fed if place == 0 else [(0,)] * rows)
            logits = _of_vocabulary(draft.logits(hidden), self._target.vocab_size)
            if self._sampling.greedy:
                token = logits.argmax(-1)
            else:
                distribution = probabilities(logits, self._sampling)
                token = draw(distribution, self._points_at(place)[:, 0])
                distributions.append(distribution)
            chosen.append(token)
            ids = token.unsqueeze(-1)
        proposed = torch.stack(distributions, dim=1) if distributions else None
        return torch.stack(chosen, dim=1), proposed

    def _judged_logits(self, drafted: Tensor) -> Tensor:
        """fp32 [rows, length + 1, vocabulary] of the last token written and the drafted ones."""
        rows, length = drafted.shape
        fed = [self._unseen(row, self._cache) for row in range(rows)]
        ids = torch.cat((torch.tensor(fed, device=drafted.device), drafted), dim=1)
        if not self._speculation.exact:
            hidden = self._target.hidden(ids, self._cache)
            return self._target.logits(hidden[:, -length - 1 :])
        ids = F.pad(ids, (0, self._speculation.window - ids.shape[1]))
        hidden = self._target.hidden(ids, self._cache, key_length=self._cache.capacity)
        return self._target.logits(hidden)[:, : length + 1]

    def _judge(
        self, logits: Tensor, drafted: Tensor, proposed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Accepted tokens and the token that follows them, of each row."""
        # A row near its end has no use for as many drafts as its neighbours. What it gets must not
        # depend on them, so it is judged as if it had none.
        length, most = drafted.shape[1], self._sampling.max_new_tokens
        limits = torch.tensor(
            [max(0, min(length, most - s.position - 1)) for s in self._rows], device=drafted.device
        )
        if self._sampling.greedy:
            return judge_greedy(logits.argmax(-1), drafted, limits)
        target = probabilities(logits, self._sampling)
        if proposed is None:
            proposed = target[:, :0]
        points = [self._points_at(place)[:, 1:] for place in range(length + 1)]
        return judge(target, proposed, drafted, limits, torch.stack(points, dim=1))

    def _points_at(self, place: int) -> Tensor:
        """fp64 [rows, 3]: the draft's draw, whether it stays, the target's draw.

        Places past the last that may be written get the numbers of the last: they are dropped.
        """
        last = self._sampling.max_new_tokens - 1
        numbers = []
        for sequence in self._rows:
            at, points = min(sequence.position + place, last), cast(_Points, sequence.points)
            numbers.append((*points.draft[at], points.following[at]))
        return torch.tensor(numbers, dtype=torch.float64, device=self._target.device)

    def _unseen(self, row: int, cache: KVCache) -> list[int]:
        """The tokens of a row that a cache does not hold yet; any token of a row that has ended."""
        if not self._rows[row].live:
            cache.lengths[row] = 0
            return [0]
        return self._rows[row].tokens[cache.lengths[row] :]

    def _rewind(self, row: int, length: int) -> None:
        """Drop from the caches what was not accepted."""
        self._cache.lengths[row] = length
        if self._draft_cache is not None:
            self._draft_cache.lengths[row] = min(self._draft_cache.lengths[row], length)

    def _leave_out_ended(self) -> None:
        """Fill the rows of sequences that have ended from behind; exact mode keeps its shape."""
        if self._speculation.exact:
            return
        ended = [row for row, sequence in enumerate(self._rows) if not sequence.live]
        caches = [c for c in (self._cache, self._draft_cache) if c is not None]
        for row in reversed(ended):
            last = self._rows.pop()
            for cache in caches:
                if row < len(self._rows):
                    cache.move(len(self._rows), row)
                cache.lengths.pop()
            if row < len(self._rows):
                self._rows[row] = last


def _of_vocabulary(logits: Tensor, size: int) -> Tensor:
    """Logits [rows, size]: models with one tokenizer can pad their vocabularies differently."""
    missing = size - logits.shape[-1]
    return logits[..., :size] if missing <= 0 else F.pad(logits, (0, missing), value=-torch.inf)
