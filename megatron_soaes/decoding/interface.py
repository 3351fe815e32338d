"""What every way of generating text takes and gives. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from megatron_soaes.errors import UserError

Prompt = Sequence[int]
"""Token ids, at least one."""

TextOf = Callable[[Sequence[int]], str]
"""Makes text of generated token ids, as `prompts.text_of` does."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and when a completion ends.

    A sampled token is a function of (seed, prompt, position): neither the batch nor the layout nor
    other prompts change it. The same prompt with the same seed gives the same completion.
    """

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the most likely token; otherwise logits are divided by it."""
    top_p: float = 1.0
    """Draw from the smallest set of most likely tokens whose probability reaches this (nucleus
    sampling, Holtzman et al. 1904.09751)."""
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a completion, such as end-of-text and end-of-turn."""
    top_k: int = 0
    """Draw from so many of the most likely tokens, chosen before `top_p` applies; 0 from all."""

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 or more"),
        }
        for field, (right, expected) in checks.items():
            if not right:
                raise UserError(
                    f"sampling.{field}", repr(getattr(self, field)), expected, "Change the value."
                )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    tokens: tuple[int, ...]
    """Without the prompt and without the stop token."""
    text: str
    finish: Literal["stop", "length"]
    """Whether a stop token came, or `max_new_tokens` were written."""


class LogLikelihood(NamedTuple):
    """How likely a model holds a continuation to be."""

    total: float
    """Sum of the log-probabilities of its tokens, in nats; each in fp32, the sum in fp64."""
    greedy: bool
    """Whether each of its tokens is the most likely one, so greedy decoding would write it."""


Request = tuple[Prompt, Sequence[int]]
"""A context and the continuation whose likelihood is asked for."""


class Completer(Protocol):
    """A model that writes text. In a job of several ranks all calls are collective: every rank
    asks the same and gets everything."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """A completion of each prompt, in the order of the prompts.

        Raises UserError for an empty prompt, for a token outside the vocabulary and for a prompt
        that with `max_new_tokens` is longer than the model's positions.
        """
        ...


class Generator(Completer, Protocol):
    """A model that writes and judges text."""

    def log_likelihoods(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """The likelihood of each continuation after its context, in the order of the requests.

        Raises UserError as `generate` does, and for an empty context.
        """
        ...
