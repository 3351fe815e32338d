"""Answers kept as they come, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megatron_soaes.accelerator.arrival import Arrivals
from megatron_soaes.accelerator.groups import world_rank
from megatron_soaes.decoding.interface import Completer, Completion, Prompt, Sampling
from megatron_soaes.errors import UserError
from megatron_soaes.files import fsync_directory, sha256_json


def answer(
    generator: Completer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    store: Path,
    model: str,
    *,
    at_once: int = 256,
    note: Callable[[str], object] = print,
) -> list[Completion]:
    """Complete all prompts; what `store` already holds is not generated again.

    The store is JSON lines, one an answer, under a hash of prompt, sampling and `model`, which must
    say which weights answered (such as the hash of a checkpoint): answers of several models can
    share it. After every `at_once` prompts the new answers are appended and flushed to the disk. A
    last line that was cut off by a kill is dropped with a note.

    In a job of several ranks this is collective, and only rank 0 reads and writes the store.
    Raises UserError for a store with a damaged line, besides what the generator raises.
    """
    keys = [_key(prompt, sampling, model) for prompt in prompts]
    together = _meeting()
    kept: dict[str, Completion] = {}
    with together(f"reading {store}"):
        if world_rank() == 0:
            stored = _read(store, note)
            kept = {key: stored[key] for key in set(keys) & stored.keys()}
    kept = _from_first_rank(kept)
    # A prompt that is asked twice is answered once.
    missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in kept}
    for part in _parts(list(missing.items()), at_once):
        completions = generator.generate([prompt for _, prompt in part], sampling)
        new = {key: completion for (key, _), completion in zip(part, completions, strict=True)}
        with together(f"writing {store}"):
            if world_rank() == 0:
                _append(store, new)
        kept |= new
    return [kept[key] for key in keys]


def _key(prompt: Prompt, sampling: Sampling, model: str) -> str:
    return sha256_json({"prompt": list(prompt), "sampling": asdict(sampling), "model": model})


def _parts(items: list[tuple[str, Prompt]], size: int) -> Iterator[list[tuple[str, Prompt]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _meeting() -> Callable[[str], Any]:
    """Blocks whose failure on one rank reaches all others at once."""
    if torch.distributed.is_initialized():
        return Arrivals().together

    @contextmanager
    def alone(what: str) -> Iterator[None]:
        yield

    return alone


def _from_first_rank(kept: dict[str, Completion]) -> dict[str, Completion]:
    if not torch.distributed.is_initialized():
        return kept
    box = [kept]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def _append(store: Path, answers: Mapping[str, Completion]) -> None:
    """Add lines and flush them; the file's own name, too, when it is new."""
    is_new = not store.exists()
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("ab") as stream:
        for key, completion in answers.items():
            line = json.dumps({"key": key, **asdict(completion)}, ensure_ascii=False)
            stream.write(line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    if is_new:
        fsync_directory(store.parent)


def _read(store: Path, note: Callable[[str], object]) -> dict[str, Completion]:
    """All answers; an unfinished last line is cut off the file."""
    if not store.exists():
        return {}
    *lines, rest = store.read_bytes().split(b"\n")
    if rest:
        os.truncate(store, store.stat().st_size - len(rest))
        note(f"{store}: the last answer was not written to its end and is asked for again")
    answers = {}
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            answers[fields["key"]] = Completion(
                tuple(int(token) for token in fields["tokens"]), fields["text"], fields["finish"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{store}, line {number}", f"no answer ({type(error).__name__}: {error})",
                "the JSON of one answer", "Delete the line, or the file to ask everything again.",
            ) from None  # fmt: skip
    return answers
