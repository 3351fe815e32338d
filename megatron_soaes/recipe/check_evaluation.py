"""Rules of evaluations: what is measured, in which layout, and what is wanted of the numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.evaluation_settings import Evaluation
from megatron_soaes.recipe.graph import layout_of
from megatron_soaes.recipe.problems import Problem, repeated, unknown
from megatron_soaes.recipe.schema import EvaluateStage, ModelName, Recipe
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.targets import Margin, Target

PERPLEXITY_METRICS = ("loss", "perplexity", "tokens")
QUESTION_METRICS = ("rouge1", "rouge2", "rougel", "bleu4")
CHOICE_METRICS = ("choice.acc", "choice.acc_norm", "choice.acc_bytes")
TEXT_METRICS = ("text.bits_per_byte",)
FACTS = "facts.accuracy"
"""There when the file has facts."""
RESERVED = ("begun", "comparison", "manifest", "result")
"""Other JSON files in the folder of an evaluate stage."""
PART = re.compile(r"\[[^\]]*\]")


def check_evaluation(recipe: Recipe, shapes: Mapping[ModelName, ModelShape]) -> list[Problem]:
    """Every broken rule of `evaluation` and of the evaluate stages but those about their names."""
    stages = [stage for stage in recipe.stages if isinstance(stage, EvaluateStage)]
    problems = [*_tasks(recipe.evaluation), *_wishes(recipe.evaluation, stages)]
    if stages and not (recipe.evaluation.perplexity or recipe.evaluation.tasks):
        fix = "Give perplexity, questions, choices or texts."
        rule = "one at least for the evaluate stages"
        problems.append(Problem("evaluation", "nothing to measure", rule, fix))
    for stage in stages:
        problems += _stage(recipe, stage)
        if stage.model in shapes:
            problems += _lengths(recipe.evaluation, shapes[stage.model])
    return problems


def task_metrics(evaluation: Evaluation) -> list[str]:
    """The full name of every measure of the tasks, `NAME.PROFILE.METRIC`."""
    answered = [f"{profile}.{m}" for profile in evaluation.profiles for m in QUESTION_METRICS]
    return [
        *(f"{name}.{m}" for name in evaluation.questions for m in (*answered, FACTS)),
        *(f"{name}.{m}" for name in evaluation.choices for m in CHOICE_METRICS),
        *(f"{name}.{m}" for name in evaluation.texts for m in TEXT_METRICS),
    ]


def evaluation_metrics(evaluation: Evaluation, stage: EvaluateStage) -> list[str]:
    """What gates of an evaluate stage can speak about, `CHECKPOINT.SET.METRIC`.

    And `retained`, of the last checkpoint, and `CHECKPOINT.retained`: what is kept of the first
    one's general ability.
    """
    sets = [f"{name}.{metric}" for name in evaluation.perplexity for metric in PERPLEXITY_METRICS]
    metrics = [*sets, *task_metrics(evaluation)]
    found = [f"{name}.{metric}" for name in stage.checkpoints for metric in metrics]
    later = stage.checkpoints[1:]
    if later and (evaluation.choices or evaluation.texts):
        found += ["retained", *(f"{name}.retained" for name in later)]
    return found


def _tasks(evaluation: Evaluation) -> Iterator[Problem]:
    kinds = (evaluation.questions, evaluation.choices, evaluation.texts, set(evaluation.perplexity))
    for name, count in Counter(name for kind in kinds for name in kind).items():
        if count > 1:
            rule = "a name of its own for everything that is measured"
            yield Problem("evaluation", f"'{name}' {count} times", rule, "Rename one.")
    choices = evaluation.choices
    yield from unknown("evaluation.few_shot", evaluation.few_shot, choices, "one of choices")
    yield from repeated("evaluation.profiles", evaluation.profiles)
    if evaluation.texts and evaluation.sequence_length < 2:
        path, value = "evaluation.sequence_length", str(evaluation.sequence_length)
        yield Problem(path, value, "2 or more: a token and one before it", "Use 2 or more.")


def _wishes(evaluation: Evaluation, stages: list[EvaluateStage]) -> Iterator[Problem]:
    """Targets and margin."""
    path = "evaluation.targets"
    for text in evaluation.targets:
        try:
            target = Target.parse(text)
        except UserError as error:
            yield Problem(path, error.found, error.expected, error.fix)
            continue
        # Which parts a suite has, as in `exam[A]`, is not known before its file is read.
        whole = Target(PART.sub("", target.metric), target.operator, target.bound, target.in_points)
        if not any(map(whole.is_about, known := task_metrics(evaluation))):
            rule = "a measure of questions, choices or texts"
            fix = f"Known: {', '.join(known) or 'none'}."
            yield Problem(path, f"'{target.metric}'", rule, fix)
    if evaluation.targets and all(len(stage.checkpoints) < 2 for stage in stages):
        rule = "an evaluate stage with two checkpoints or more"
        yield Problem(path, "targets", rule, "Compare with a base, or remove the targets.")
    try:
        Margin.parse(evaluation.margin)
    except UserError as error:
        yield Problem("evaluation.margin", error.found, error.expected, error.fix)


def _stage(recipe: Recipe, stage: EvaluateStage) -> Iterator[Problem]:
    path = f"stages.{stage.name}"
    for name in stage.checkpoints:
        if name in RESERVED:
            fix = "Rename that stage."
            yield Problem(f"{path}.checkpoints", f"'{name}'", "a name of no other file", fix)
    if not recipe.evaluation.tasks or recipe.models.get(stage.model) is None:
        return
    layout = layout_of(recipe, stage)
    for field in ("context_parallel", "virtual_pipeline"):
        value = getattr(layout, field)
        if value > 1:
            rule = "1: text is generated and judged in a plain layout"
            fix = f"Give the stage a layout without {field}; any checkpoint loads in any layout."
            yield Problem(f"{path}.layout.{field}", str(value), rule, fix)


def _lengths(evaluation: Evaluation, shape: ModelShape) -> Iterator[Problem]:
    if evaluation.questions and evaluation.max_new_tokens >= shape.max_position:
        rule = f"below {shape.max_position}, the positions the model was built for"
        value, fix = str(evaluation.max_new_tokens), "Lower it; a question needs room, too."
        yield Problem("evaluation.max_new_tokens", value, rule, fix)
