"""Answers that a model wrote, as a dataset of conversations that stages train on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_prep.indexed import token_dtype, write_index
from data_prep.sft.convert import FORMAT, VERSION
from megatron_soaes import files
from megatron_soaes.decoding.interface import Completion, Prompt

if TYPE_CHECKING:
    from megatron_soaes.stages.prompt_sets import PromptSet

FILES = (".bin", ".idx", "_weights.bin", "_weights.idx", "_sources.npy", ".jsonl", ".json")
"""Suffixes of the prefix; the last one, the description, says that the dataset is whole."""
WEIGHTS_DTYPE = np.dtype("<f4")


@dataclass(frozen=True)
class Response:
    """A prompt of a dataset, and what the model wrote after it."""

    dataset: str
    temperature: float
    prompt: Prompt
    completion: Completion
    stop: int
    """The token that ends an answer."""
    cut: bool = False
    """Whether the model went on with a number that stands for no token, and what came after."""

    def in_vocabulary(self, size: int, text_of: Callable[[Prompt], str]) -> Response:
        """The answer up to where the model wrote what its tokenizer has not, if it did.

        Embeddings have more rows than tokenizers have tokens (`size`). Those rows are hardly ever
        written, but a draft with fewer of them could not even read them.
        """
        tokens = self.completion.tokens
        known = next((n for n, token in enumerate(tokens) if token >= size), len(tokens))
        if known == len(tokens):
            return self
        kept = tokens[:known]
        return replace(self, completion=Completion(kept, text_of(kept), "length"), cut=True)

    @property
    def answer(self) -> tuple[int, ...]:
        """The tokens of the answer, with the one that ended it if it did not end by length."""
        ended = (self.stop,) if self.completion.finish == "stop" else ()
        return (*self.completion.tokens, *ended)


def response_files(prefix: Path) -> dict[str, Path]:
    """The files that `write_responses` makes, by their suffix."""
    return {suffix: prefix.with_name(prefix.name + suffix) for suffix in FILES}


def write_responses(
    prefix: Path,
    responses: Sequence[Response],
    *,
    vocab_size: int,
    tokenizer_sha256: str,
    options: Mapping[str, Any],
    text_of: Callable[[Prompt], str],
) -> None:
    """Write at least one response as an SFT dataset, one conversation each, and as text.

    The tokens are prompt and answer, weighing 0 and 1; the source is the prompt's dataset.
    PREFIX.jsonl has prompts (by `text_of`) and answers for people to read; `options`, which say how
    the answers came about, are kept in the description. Each file appears whole, PREFIX.json last.
    """
    paths = response_files(prefix)
    names = sorted({one.dataset for one in responses})
    numbers = {name: number for number, name in enumerate(names)}
    lengths = np.array([len(one.prompt) + len(one.answer) for one in responses], dtype=np.int32)
    _write_pair(paths[".bin"], paths[".idx"], map(_tokens, responses), lengths,
                token_dtype(vocab_size))  # fmt: skip
    _write_pair(paths["_weights.bin"], paths["_weights.idx"], map(_weights, responses), lengths,
                WEIGHTS_DTYPE)  # fmt: skip
    with files.atomic_file(paths["_sources.npy"], "wb") as stream:
        np.save(stream, np.array([numbers[one.dataset] for one in responses], dtype=np.uint16))
    with files.atomic_file(paths[".jsonl"]) as stream:
        for one in responses:
            stream.write(json.dumps(_readable(one, text_of), ensure_ascii=False) + "\n")
    description = {
        "format": FORMAT,
        "version": VERSION,
        "sources": names,
        "conversations": len(responses),
        "tokens": int(lengths.sum()),
        "trained_tokens": sum(len(one.answer) for one in responses),
        "longest": int(lengths.max()),
        "tokenizer_sha256": tokenizer_sha256,
        "options": dict(options),
    }
    files.write_json(paths[".json"], description)


def mixed(responses: Sequence[Response], seed: int) -> list[Response]:
    """All responses in a random order by prompt; those to one prompt stay together.

    So a share held out at the end has prompts of every dataset, and hardly one that is trained on
    at another temperature.
    """
    by_prompt: dict[tuple[str, tuple[int, ...]], list[Response]] = {}
    for one in responses:
        by_prompt.setdefault((one.dataset, tuple(one.prompt)), []).append(one)
    groups = list(by_prompt.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    return [one for number in order for one in groups[number]]


def response_metrics(
    asked: PromptSet, temperatures: int, responses: Sequence[Response]
) -> dict[str, Any]:
    """What came of a dataset's prompts, each asked at so many temperatures.

    `tokens` are those of the answers, ends of turns and documents included: all that is trained.
    `left_out` counts documents and conversations by reason, as `prompt_sets.LeftOut` says, and as
    `no_answer` the answers without any token; `cut_before_no_token` are among those that ended by
    length.
    """
    stopped = sum(one.completion.finish == "stop" for one in responses)
    no_answer = temperatures * len(asked.prompts) - len(responses)
    return {
        "prompts": len(asked.prompts),
        "answers": len(responses),
        "tokens": sum(len(one.answer) for one in responses),
        "ended_by_stop": stopped,
        "ended_by_length": len(responses) - stopped,
        "cut_before_no_token": sum(one.cut for one in responses),
        "left_out": {**asked.left_out, "no_answer": no_answer},
    }


def _tokens(one: Response) -> NDArray[np.int64]:
    return np.array([*one.prompt, *one.answer], dtype=np.int64)


def _weights(one: Response) -> NDArray[np.float32]:
    return np.repeat(np.array([0, 1], WEIGHTS_DTYPE), [len(one.prompt), len(one.answer)])


def _write_pair(
    values: Path,
    index: Path,
    sequences: Iterable[NDArray[Any]],
    lengths: NDArray[np.int32],
    dtype: np.dtype[Any],
) -> None:
    with files.atomic_file(values, "wb") as stream:
        for sequence in sequences:
            stream.write(sequence.astype(dtype).tobytes())
    with files.atomic_file(index, "wb") as stream:
        write_index(stream, dtype, len(lengths), len(lengths), lambda: [lengths])


def _readable(one: Response, text_of: Callable[[Prompt], str]) -> dict[str, Any]:
    return {
        "dataset": one.dataset,
        "temperature": one.temperature,
        "finish": one.completion.finish,
        "prompt": text_of(one.prompt),
        "answer": one.completion.text,
    }
