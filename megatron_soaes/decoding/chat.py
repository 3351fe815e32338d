"""A conversation in the terminal, as it is written; what the draft wrote is tinted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_soaes.decoding.draft_length import Round, acceptance_of
from megatron_soaes.decoding.interface import Prompt, Sampling, TextOf
from megatron_soaes.decoding.pairing import load_model, pass_costs, shared_tokenizer
from megatron_soaes.decoding.prompts import (
    Message,
    load_tokenizer,
    render_prompt,
    stop_ids,
    text_of,
)
from megatron_soaes.decoding.speculative import (
    Speculation,
    SpeculativeDecoder,
    Step,
)

UNFINISHED = "\ufffd"
"""What decoders make of the first bytes of a character."""

Show = Callable[[str, bool], object]
"""Takes a piece of text and whether the draft wrote it."""


@dataclass
class TextStream:
    """Turns tokens into pieces of text, each as soon as its last character is complete."""

    text_of: TextOf
    tokens: list[int] = field(default_factory=list)
    _shown: int = 0

    def add(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        self.tokens.append(token)
        text = self.text_of(self.tokens)
        return "" if text.endswith(UNFINISHED) else self._rest(text)

    def end(self) -> str:
        """What was held back."""
        return self._rest(self.text_of(self.tokens))

    def _rest(self, text: str) -> str:
        piece, self._shown = text[self._shown :], len(text)
        return piece


@dataclass(frozen=True)
class Answer:
    """What was said, and how fast."""

    text: str
    tokens: int
    seconds: float
    rounds: tuple[Round, ...]

    def status(self) -> str:
        """Tokens per second and, with a draft, how much of it was accepted."""
        line = f"{self.tokens} tokens, {self.tokens / self.seconds:.1f} tokens/s"
        if any(one.drafted for one in self.rounds):
            seen = acceptance_of(self.rounds)
            line += (
                f", acceptance rate {seen.acceptance_rate:.2f}, "
                f"{seen.acceptance_length_with_bonus:.2f} tokens a target pass (bonus included)"
            )
        return line


def answer(
    decoder: SpeculativeDecoder, prompt: Prompt, sampling: Sampling, to_text: TextOf, show: Show
) -> Answer:
    """Complete one prompt, showing each piece of text when it is there."""
    stream = TextStream(to_text)

    def watch(step: Step) -> None:
        for place, token in enumerate(step.tokens):
            piece = stream.add(token)
            if piece:
                show(piece, place < step.accepted)

    started = time.perf_counter()
    written = decoder.generate([prompt], sampling, watch=watch)[0]
    seconds = time.perf_counter() - started
    rest = stream.end()
    if rest:
        show(rest, False)
    return Answer(to_text(written.tokens), len(written.generated), seconds, written.rounds)


class Chat:
    """A model, perhaps with a draft, that answers conversations."""

    def __init__(
        self, decoder: SpeculativeDecoder, tokenizer: PreTrainedTokenizerBase, sampling: Sampling
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._sampling = sampling

    @classmethod
    def open(
        cls,
        target_dir: Path,
        draft_dir: Path | None,
        sampling: Sampling,
        *,
        draft_length: int,
        adaptive: bool,
        exact: bool,
        dtypes: tuple[str, str],
    ) -> Chat:
        """Read the models; with `adaptive` measure their passes, so that the length can follow.

        Raises UserError as `shared_tokenizer` and `load_model` do.
        """
        target = load_model(target_dir, dtypes[0])
        sampling = replace(sampling, stop_ids=stop_ids(load_tokenizer(target_dir), target_dir))
        if draft_dir is None:
            decoder = SpeculativeDecoder(target, None, Speculation(0, exact))
            return cls(decoder, load_tokenizer(target_dir), sampling)
        tokenizer = shared_tokenizer(target_dir, draft_dir)
        draft = load_model(draft_dir, dtypes[1])
        window = max(8, draft_length + 1)
        costs = None
        if adaptive:
            costs = pass_costs(target, draft, draft_length, 1, window if exact else None)
        speculation = Speculation(draft_length, exact, window, costs)
        return cls(SpeculativeDecoder(target, draft, speculation), tokenizer, sampling)

    def reply(self, turns: Sequence[Message], show: Show) -> Answer:
        """Answer the last turn. A model without a chat template goes on with its text."""
        question = turns if self._tokenizer.chat_template else turns[-1]["content"]
        prompt = render_prompt(self._tokenizer, question)
        return answer(self._decoder, prompt, self._sampling, text_of(self._tokenizer), show)


def converse(
    ask: Callable[[], str | None],
    reply: Callable[[Sequence[dict[str, str]]], Answer],
    tell: Callable[[str], object],
) -> None:
    """Turns of question and answer until `ask` returns None; `tell` shows each status line."""
    turns: list[dict[str, str]] = []
    while (question := ask()) is not None:
        turns.append({"role": "user", "content": question})
        said = reply(turns)
        turns.append({"role": "assistant", "content": said.text})
        tell(said.status())
