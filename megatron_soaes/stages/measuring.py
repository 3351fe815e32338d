"""Measure one model on task files: ask, keep the answers, score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from megatron_soaes.accelerator.groups import world_rank
from megatron_soaes.decoding import prompts
from megatron_soaes.decoding.answers import answer
from megatron_soaes.decoding.interface import Generator, Request, Sampling
from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.result import Model, Suite
from megatron_soaes.evaluation.scoring import score_bits_per_byte, score_choices, score_questions
from megatron_soaes.evaluation.tasks import (
    Choice,
    Item,
    Question,
    Task,
    Text,
    few_shot_prefix,
    read_choices,
    read_questions,
    read_texts,
)
from megatron_soaes.recipe.evaluation_settings import Evaluation, FewShot
from megatron_soaes.stages.rendering import Tokens, rendering_for


@dataclass(frozen=True)
class Examples:
    """Worked examples before every item of a task."""

    prefix: str
    count: int
    sha256: str
    """Of their file."""


@dataclass(frozen=True)
class Tasks:
    """All task files of an evaluation, read and checked."""

    questions: Mapping[str, Task[Question]]
    choices: Mapping[str, Task[Choice]]
    texts: Mapping[str, Task[Text]]
    examples: Mapping[str, Examples]
    """By the name of the task of choices."""


def read_tasks(settings: Evaluation) -> Tasks:
    """Read every file that an evaluation names. Raises UserError with file and line."""
    return Tasks(
        {name: read_questions(path) for name, path in settings.questions.items()},
        {name: read_choices(path) for name, path in settings.choices.items()},
        {name: read_texts(path) for name, path in settings.texts.items()},
        {name: _examples(shot) for name, shot in settings.few_shot.items()},
    )


def _examples(shot: FewShot) -> Examples:
    task = read_choices(shot.examples)
    return Examples(few_shot_prefix(task, shot.count), shot.count, task.sha256)


@dataclass(frozen=True)
class Subject:
    """A model to measure, and everything needed to ask it."""

    model: Model
    generator: Generator
    tokenizer: PreTrainedTokenizerBase
    hf_dir: Path
    """Where its tokenizer, chat template and generation config are."""
    dtype: str
    """Of the arithmetic, as results tell it."""
    max_position: int | None
    """Longest sequence; None where only a server knows it."""

    identity: str
    """What answers depend on besides prompt and sampling, such as a hash of the weights."""


def measure(
    subject: Subject, tasks: Tasks, settings: Evaluation, answers: Path
) -> dict[str, Suite]:
    """A suite for each task; answers are kept in the file `answers` and never asked for twice.

    Collective in a job of several ranks, of which the first scores; the others get no suites.
    Raises UserError for an item that the model cannot take.
    """
    suites = {
        name: _ask(subject, task, settings, answers) for name, task in tasks.questions.items()
    }
    for name, choices in tasks.choices.items():
        suites[name] = _choose(subject, choices, tasks.examples.get(name), settings)
    for name, texts in tasks.texts.items():
        suites[name] = _weigh(subject, texts, settings)
    return {name: suite for name, suite in suites.items() if suite is not None}


def _ask(
    subject: Subject, task: Task[Question], settings: Evaluation, answers: Path
) -> Suite | None:
    rendering = rendering_for(subject.tokenizer, subject.hf_dir, settings)
    stops = {*prompts.stop_ids(subject.tokenizer, subject.hf_dir), *rendering.stop_ids}
    sampling = Sampling(settings.max_new_tokens, stop_ids=tuple(sorted(stops)))
    asked = []
    for item in task.items:
        if item.prompt:
            prompt = prompts.render_prompt(subject.tokenizer, item.prompt)
        else:
            prompt = rendering.prompt(item.messages, _where(task, item))
        _require_room(subject, task, item, len(prompt), sampling.max_new_tokens)
        asked.append(prompt)
    completions = answer(subject.generator, asked, sampling, answers, subject.identity)
    if world_rank() != 0:
        return None
    described = {
        **rendering.settings,
        "dtype": subject.dtype,
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "stop_ids": list(sampling.stop_ids),
    }
    texts = [
        one.text if item.prompt else rendering.answer(one.text)
        for item, one in zip(task.items, completions, strict=True)
    ]
    return score_questions(task, texts, described, settings.profiles)


def _choose(
    subject: Subject, task: Task[Choice], shown: Examples | None, settings: Evaluation
) -> Suite | None:
    tokens = Tokens(subject.tokenizer, settings.sequence_length)
    requests: list[Request] = []
    for item in task.items:
        for choice in item.choices:
            prefix = shown.prefix if shown else ""
            context, continuation = tokens.choice(prefix + item.context, choice)
            if not continuation:
                raise UserError(
                    _where(task, item), f"the choice {choice!r} without a token of its own",
                    "a choice that the tokenizer does not join with the context",
                    "Begin the choice with a blank or end the context with one.",
                )  # fmt: skip
            _require_room(subject, task, item, len(context) + len(continuation), 0)
            requests.append((context, continuation))
    likelihoods = iter(subject.generator.log_likelihoods(requests))
    rows = [[next(likelihoods).total for _ in item.choices] for item in task.items]
    if world_rank() != 0:
        return None
    examples = {"few_shot": shown.count, "few_shot_sha256": shown.sha256} if shown else {}
    return score_choices(task, rows, {"dtype": subject.dtype, **examples})


def _weigh(subject: Subject, task: Task[Text], settings: Evaluation) -> Suite | None:
    window = min(settings.sequence_length, subject.max_position or settings.sequence_length)
    tokens = Tokens(subject.tokenizer, window)
    parts = [tokens.text(item.text) for item in task.items]
    requests = [request for windows in parts for request in windows]
    likelihoods = iter(subject.generator.log_likelihoods(requests))
    totals = [sum(next(likelihoods).total for _ in windows) for windows in parts]
    if world_rank() != 0:
        return None
    return score_bits_per_byte(task, totals, {"dtype": subject.dtype, **tokens.settings})


def _require_room(
    subject: Subject, task: Task[Item], item: Item, tokens: int, new_tokens: int
) -> None:
    longest = subject.max_position
    if longest is not None and tokens + new_tokens > longest:
        raise UserError(
            _where(task, item), f"{tokens} tokens and an answer of up to {new_tokens}",
            f"at most {longest} together, the positions of the model",
            "Shorten the item, or lower max_new_tokens.",
        )  # fmt: skip


def _where(task: Task[Item], item: Item) -> str:
    return f"{task.path}: item {item.id}"
