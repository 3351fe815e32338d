"""What speculation is worth where the pair is served: two servers, the same prompts, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_soaes.decoding.endpoint import EndpointGenerator
from megatron_soaes.decoding.interface import Prompt, Sampling
from megatron_soaes.decoding.measure import Speedup, in_turn, speedup
from megatron_soaes.decoding.prompt_file import read_prompts
from megatron_soaes.decoding.prompts import load_tokenizer, stop_ids
from megatron_soaes.decoding.speculative import Written

EXCERPT = 40
"""Characters shown of two texts from where they part."""


@dataclass(frozen=True)
class Service:
    """A server of OpenAI's completions protocol: trtllm-serve, vLLM or SGLang."""

    url: str
    """Up to `/v1`."""
    model: str
    """The name under which it serves."""


@dataclass(frozen=True)
class Parting:
    """Where the text of the speculative server leaves that of the plain one."""

    prompt: int
    character: int
    plain: str
    speculative: str


@dataclass(frozen=True)
class ServedComparison:
    """Everything that one run found; the protocol tells of no acceptance."""

    plain: Service
    speculative: Service
    sampling: Sampling
    prompts: int
    rows: int
    """Requests in flight together."""
    repeats: int
    plain_seconds_per_token: float
    speculative_seconds_per_token: float
    speedup: Speedup
    partings: tuple[Parting, ...] | None
    """Of greedy texts; None for sampled ones, which are equal in distribution only."""

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """Speed, whether the text is the same, and what to do."""
        one = self.speedup
        interval = f"{one.value:.2f}x, 95 % interval {one.low:.2f} to {one.high:.2f}"
        lines = [
            f"{self.prompts} prompts, {self.rows} at a time, {self.repeats} repeats.",
            f"A token takes {1000 * self.plain_seconds_per_token:.2f} ms at {self.plain.url} and "
            f"{1000 * self.speculative_seconds_per_token:.2f} ms at {self.speculative.url}.",
            f"Speedup: {interval}.",
        ]
        if self.partings is not None:
            equal = self.prompts - len(self.partings)
            lines.append(f"The same text: {equal} of {self.prompts} prompts.")
            lines += [
                f"Prompt {one.prompt} parts at character {one.character}: {one.plain!r} or "
                f"{one.speculative!r}."
                for one in self.partings
            ]
        advice = "go" if one.low > 1 else "no-go: that is not surely above 1"
        lines.append(f"Recommendation with {self.rows} at a time: {advice}.")
        return lines


class _ServedDecoder:
    """A server as something that is timed (`measure.Decoder`)."""

    def __init__(self, service: Service, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
        def tokens_of(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False).input_ids)

        self._server = EndpointGenerator(service.url, service.model, tokens_of, concurrency=rows)
        self.texts: dict[tuple[int, ...], str] = {}
        """Answers by prompt; of the last time it was asked."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, rows: int = 1
    ) -> list[Written]:
        answers = self._server.generate(prompts, sampling)
        self.texts |= {tuple(p): one.text for p, one in zip(prompts, answers, strict=True)}
        stop = next(iter(sampling.stop_ids), None)
        return [Written(one.tokens, stop if one.finish == "stop" else None, ()) for one in answers]


def compare_services(
    plain: Service,
    speculative: Service,
    tokenizer_dir: Path,
    prompt_file: Path,
    sampling: Sampling,
    *,
    rows: int = 1,
    repeats: int = 3,
    note: Callable[[str], object] = print,
) -> ServedComparison:
    """Ask both servers every prompt, in turn and in another order each time.

    Prompts go as token ids of the tokenizer in `tokenizer_dir`, an HF directory of the target; its
    stop tokens end an answer. Tokens are counted on the returned text. Raises UserError for a
    prompt file that cannot be read and for a server that does not answer.
    """
    tokenizer = load_tokenizer(tokenizer_dir)
    prompts = read_prompts(prompt_file, tokenizer)
    sampling = replace(sampling, stop_ids=stop_ids(tokenizer, tokenizer_dir))
    rows = min(rows, len(prompts))
    decoders = {
        "plain": _ServedDecoder(plain, tokenizer, rows),
        "speculative": _ServedDecoder(speculative, tokenizer, rows),
    }
    timed = in_turn(decoders, prompts, sampling, rows=rows, repeats=repeats, note=note)
    texts = [decoders[name].texts for name in decoders]
    return ServedComparison(
        plain,
        speculative,
        sampling,
        len(prompts),
        rows,
        repeats,
        timed["plain"].seconds_per_token,
        timed["speculative"].seconds_per_token,
        speedup(timed["plain"], timed["speculative"]),
        _partings(prompts, *texts) if sampling.greedy else None,
    )


def _partings(
    prompts: Sequence[Prompt],
    plain: dict[tuple[int, ...], str],
    speculative: dict[tuple[int, ...], str],
) -> tuple[Parting, ...]:
    found = []
    for number, prompt in enumerate(prompts):
        mine, yours = plain[tuple(prompt)], speculative[tuple(prompt)]
        if mine != yours:
            same = (i for i, (a, b) in enumerate(zip(mine, yours, strict=False)) if a != b)
            place = next(same, min(len(mine), len(yours)))
            end = place + EXCERPT
            found.append(Parting(number, place, mine[place:end], yours[place:end]))
    return tuple(found)
