"""Whether the files that stages ask models from can be read, by the readers of those stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep import prompt_file
from megatron_soaes.decoding.prompt_file import read_prompts
from megatron_soaes.decoding.prompts import load_tokenizer
from megatron_soaes.evaluation.tasks import (
    Task,
    few_shot_prefix,
    read_choices,
    read_questions,
    read_texts,
)
from megatron_soaes.preflight.findings import Finding, Found, Unseen, look
from megatron_soaes.recipe.evaluation_settings import Evaluation, FewShot
from megatron_soaes.recipe.graph import model_of
from megatron_soaes.recipe.schema import EvaluateStage, ModelSource, Recipe, SpeculateStage
from megatron_soaes.stages.rendering import rendering_for
from megatron_soaes.wording import counted


def look_at_questions(recipe: Recipe, *, tokenizer: bool) -> Iterator[Finding]:
    """Every file that evaluations and comparisons of a pair read.

    Unless the target's `tokenizer` is right it is not seen how questions become tokens.
    """
    sources = {
        stage.model: model_of(recipe, stage)
        for stage in recipe.stages
        if isinstance(stage, EvaluateStage)
    }
    if sources:
        yield from _tasks(recipe.evaluation)
    for model, source in sources.items():
        if recipe.evaluation.questions and tokenizer:
            yield look(f"questions to the {model}", _rendering(recipe.evaluation, source))
    for stage in recipe.stages:
        if isinstance(stage, SpeculateStage):
            read_by = recipe.models.target if tokenizer else None
            yield look(f"prompts of {stage.name}", _prompts(stage.prompts, read_by))


def _tasks(evaluation: Evaluation) -> Iterator[Finding]:
    kinds: dict[str, tuple[Mapping[str, Path], Callable[[Path], Task[Any]]]] = {
        "questions": (evaluation.questions, read_questions),
        "choices": (evaluation.choices, read_choices),
        "texts": (evaluation.texts, read_texts),
    }
    for kind, (paths, read) in kinds.items():
        for name, path in paths.items():
            yield look(f"evaluation.{kind}.{name}", _items(path, read))
    for name, shown in evaluation.few_shot.items():
        yield look(f"evaluation.few_shot.{name}", _examples(shown))


def _items(path: Path, read: Callable[[Path], Task[Any]]) -> Found:
    yield f"{counted(len(read(path).items), 'item')} in {path}"


def _examples(shown: FewShot) -> Found:
    few_shot_prefix(read_choices(shown.examples), shown.count)
    yield f"{counted(shown.count, 'example')} from {shown.examples}"


def _rendering(evaluation: Evaluation, source: ModelSource) -> Found:
    rendering = rendering_for(load_tokenizer(source.source), source.source, evaluation)
    yield f"asked by: {rendering.settings['prompt']}"


def _prompts(path: Path, source: ModelSource | None) -> Found:
    """`source` is the model by whose tokenizer they are read, None while it has no right one."""
    if source is None:
        count = len(prompt_file.read_questions(path))
        yield Unseen(f"the tokens of {path}: the target's tokenizer must be right first")
    else:
        count = len(read_prompts(path, load_tokenizer(source.source)))
    yield f"{counted(count, 'prompt')} in {path}"
