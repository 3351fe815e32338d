"""Many prompts through a few rows: a row that is done takes the next prompt at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from megatron_soaes.decoding.interface import (
    Completion,
    LogLikelihood,
    Prompt,
    Request,
    Sampling,
    TextOf,
)
from megatron_soaes.decoding.sampling import uniform_draws
from megatron_soaes.decoding.session import Session
from megatron_soaes.errors import UserError

PASS_TOKENS = 8192
"""Most tokens, padding included, that one pass over prompts takes; bounds activations."""


class TokenModel(Protocol):
    """A model as the batching sees it."""

    @property
    def vocab_size(self) -> int:
        """Token ids lie below this."""
        ...

    @property
    def max_position(self) -> int:
        """Longest sequence that the model was made for."""
        ...

    def open(self, rows: int, capacity: int) -> AbstractContextManager[Session]:
        """Rows for sequences of up to `capacity` tokens."""
        ...


@dataclass
class _Work:
    """One prompt on its way."""

    number: int
    prompt: Prompt
    draws: Sequence[float]
    tokens: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"

    def take(self, token: int, sampling: Sampling) -> bool:
        """Add a token; returns whether this was the last."""
        if token in sampling.stop_ids:
            self.finish = "stop"
            return True
        self.tokens.append(token)
        return len(self.tokens) == sampling.max_new_tokens


def generate(
    model: TokenModel, prompts: Sequence[Prompt], sampling: Sampling, rows: int, text_of: TextOf
) -> list[Completion]:
    """Complete all prompts with at most `rows` at a time; raises what `Generator.generate` does."""
    check_prompts(prompts, model, sampling.max_new_tokens)
    if not prompts:
        return []
    works = [
        _Work(number, prompt, _draws(sampling, prompt)) for number, prompt in enumerate(prompts)
    ]
    rows = min(rows, len(works))
    longest = max(len(work.prompt) for work in works)
    with model.open(rows, longest + sampling.max_new_tokens) as session:
        _run(session, works, sampling, rows)
    return [Completion(tuple(w.tokens), text_of(w.tokens), w.finish) for w in works]


def _draws(sampling: Sampling, prompt: Prompt) -> Sequence[float]:
    if sampling.greedy:
        return (0.0,) * sampling.max_new_tokens
    return uniform_draws(sampling.seed, prompt, sampling.max_new_tokens).tolist()


def _run(session: Session, works: list[_Work], sampling: Sampling, rows: int) -> None:
    # The longest first: prompts of one pass are of similar length, and the end is not a long one.
    waiting = deque(sorted(works, key=lambda work: -len(work.prompt)))
    active: list[_Work] = []
    while waiting or active:
        first, tokens = 0, [work.tokens[-1:] for work in active]
        fed = active
        if waiting and len(active) < rows:
            first, fed = len(active), _next_prompts(waiting, rows - len(active))
            tokens = [list(work.prompt) for work in fed]
            for row in range(first, first + len(fed)):
                session.begin(row)
            active.extend(fed)
        draws = [work.draws[len(work.tokens)] for work in fed]
        chosen = session.feed(first, tokens, sampling, draws)
        done = [
            first + i
            for i, (work, token) in enumerate(zip(fed, chosen, strict=True))
            if work.take(token, sampling)
        ]
        # From the last on, so that the row that fills a gap is never itself a gap.
        for row in reversed(done):
            last = active.pop()
            if row < len(active):
                active[row] = last
                session.move(len(active), row)


def _next_prompts(waiting: deque[_Work], rows: int) -> list[_Work]:
    """The next prompts, as many as rows and one pass allow, at least one."""
    width = len(waiting[0].prompt)
    count = min(rows, len(waiting), max(1, PASS_TOKENS // width))
    return [waiting.popleft() for _ in range(count)]


def log_likelihoods(
    model: TokenModel, requests: Sequence[Request], rows: int
) -> list[LogLikelihood]:
    """Score all requests, padded batches of at most `rows`; raises as `Generator` says."""
    check_requests(requests, model)
    sequences = [[*context, *continuation] for context, continuation in requests]
    results = [LogLikelihood(0.0, True)] * len(requests)
    order = sorted(
        (i for i, (_, continuation) in enumerate(requests) if continuation),
        key=lambda i: -len(sequences[i]),
    )
    for batch in _batches(order, sequences, rows):
        chosen = [sequences[i] for i in batch]
        with model.open(len(batch), len(chosen[0])) as session:
            scores = session.score(chosen, [len(requests[i][1]) for i in batch])
        for i, score in zip(batch, scores, strict=True):
            results[i] = score
    return results


def _batches(
    order: Sequence[int], sequences: Sequence[Sequence[int]], rows: int
) -> Iterator[list[int]]:
    """Cut an order, longest first, into batches of at most `rows` that one pass can take."""
    position = 0
    while position < len(order):
        width = len(sequences[order[position]])
        count = min(rows, max(1, PASS_TOKENS // width))
        yield list(order[position : position + count])
        position += count


def check_prompts(prompts: Sequence[Prompt], model: TokenModel, new_tokens: int) -> None:
    """Raise UserError for the first prompt that the model cannot take."""
    for number, prompt in enumerate(prompts):
        where = f"prompt {number}"
        if not prompt:
            raise UserError(
                where, "no tokens", "at least one", "Begin it with the model's first token."
            )
        outside = next((t for t in prompt if not 0 <= t < model.vocab_size), None)
        if outside is not None:
            raise UserError(
                where, f"token {outside}", f"ids below {model.vocab_size}",
                "Use the tokenizer of this model.",
            )  # fmt: skip
        if len(prompt) + new_tokens > model.max_position:
            raise UserError(
                where, f"{len(prompt)} tokens and {new_tokens} new ones",
                f"at most {model.max_position} together, the model's positions",
                "Shorten the prompt or lower max_new_tokens.",
            )  # fmt: skip


def check_requests(requests: Sequence[Request], model: TokenModel) -> None:
    """Raise UserError for the first request that the model cannot take."""
    check_prompts([context for context, _ in requests], model, 0)
    check_prompts([[*context, *continuation] for context, continuation in requests], model, 0)
