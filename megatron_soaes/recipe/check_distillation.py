"""Rules of a draft's last stages: answers, captures, distillation and the measured pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

from megatron_soaes.recipe.distillation_settings import DistillationObjective, Store
from megatron_soaes.recipe.graph import BEST, IMPORT, capture_of, layout_of, stage_of, target_line
from megatron_soaes.recipe.problems import Problem, did_you_mean, repeated, unknown
from megatron_soaes.recipe.schema import (
    CaptureStage,
    DistillStage,
    ExportStage,
    ModelName,
    Recipe,
    RespondStage,
    SpeculateStage,
    Stage,
    TrainingStage,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout

OF_ONE_DIVERGENCE = {"beta": "jensen_shannon", "decay": "acceptance_hybrid"}


def check_distillation(recipe: Recipe, shapes: Mapping[ModelName, ModelShape]) -> list[Problem]:
    """Every broken rule of these stages but those that all stages share."""
    problems: list[Problem] = []
    for stage in recipe.stages:
        match stage:
            case RespondStage():
                problems += _respond(recipe, stage)
            case CaptureStage():
                problems += _capture(recipe, stage, shapes.get(stage.model))
            case DistillStage():
                problems += _distill(recipe, stage)
            case SpeculateStage():
                problems += _speculate(recipe, stage)
    return problems


def above(recipe: Recipe, stage: Stage) -> list[Stage]:
    """The stages that stand before one."""
    return list(takewhile(lambda other: other.name != stage.name, recipe.stages))


def check_answers_in_time(recipe: Recipe, stage: Stage, names: Sequence[str]) -> Iterator[Problem]:
    """A dataset of answers is there once its respond stage has run."""
    done = [one.name for one in above(recipe, stage) if isinstance(one, RespondStage)]
    for name in names:
        dataset = recipe.data.datasets.get(name)
        if dataset and dataset.responses is not None and dataset.responses not in done:
            path, rule = f"data.datasets.{name}.responses", f"a respond stage above '{stage.name}'"
            yield Problem(
                path, f"'{dataset.responses}'", rule, did_you_mean(dataset.responses, done)
            )


def _respond(recipe: Recipe, stage: RespondStage) -> Iterator[Problem]:
    path = f"stages.{stage.name}"
    yield from unknown(
        f"{path}.prompts", stage.prompts, recipe.data.datasets, "a dataset of data.datasets"
    )
    yield from repeated(f"{path}.prompts", stage.prompts)
    yield from repeated(f"{path}.sampling.temperatures", map(str, stage.sampling.temperatures))
    yield from check_answers_in_time(recipe, stage, stage.prompts)
    for field in ("url", "served_model"):
        value = getattr(stage, field)
        if (value is not None) != (stage.backend == "endpoint"):
            rule = "a value" if value is None else "nothing"
            fix = "Set it for backend endpoint, and only then."
            yield Problem(f"{path}.{field}", str(value), f"{rule} with {stage.backend}", fix)
    if recipe.models.get(stage.model) is None:
        return
    layout = layout_of(recipe, stage)
    if stage.backend == "megatron":
        yield from _plain(layout, f"{path}.layout", "text is written in a plain layout")
    elif stage.layout is not None and stage.layout.processes > 1:
        rule, fix = f"one with {stage.backend}", "Remove the layout, or choose megatron."
        yield Problem(f"{path}.layout", f"{layout.processes} processes", rule, fix)


def _plain(layout: Layout, path: str, reason: str) -> Iterator[Problem]:
    for field in ("context_parallel", "virtual_pipeline"):
        value = getattr(layout, field)
        if value > 1:
            fix = f"Give the stage a layout without {field}; any checkpoint loads in any layout."
            yield Problem(f"{path}.{field}", str(value), f"1: {reason}", fix)


def _capture(recipe: Recipe, stage: CaptureStage, shape: ModelShape | None) -> Iterator[Problem]:
    path, store = f"stages.{stage.name}", stage.store
    yield from _one_of(stage, "samples", "epochs")
    if shape and store.entries > shape.vocab_size and store.kind == "top_k":
        rule = f"at most {shape.vocab_size}, the model's vocabulary"
        yield Problem(f"{path}.store.entries", str(store.entries), rule, "Keep fewer.")
    if store.kind == "top_k" and store.exponent != Store.model_fields["exponent"].default:
        rule = "nothing with top_k"
        yield Problem(f"{path}.store.exponent", f"{store.exponent:g}", rule, "Remove it.")
    virtual = recipe.models.get(stage.model) and layout_of(recipe, stage).virtual_pipeline
    if virtual and virtual > 1:
        fix = "Give the stage a layout without it; any checkpoint loads in any layout."
        field = f"{path}.layout.virtual_pipeline"
        yield Problem(field, str(virtual), "1: nothing but forward passes are run", fix)


def _distill(recipe: Recipe, stage: DistillStage) -> Iterator[Problem]:
    path = f"stages.{stage.name}"
    if stage.model != "draft":
        rule = "draft: the target is the teacher"
        yield Problem(f"{path}.model", stage.model, rule, "Remove the line.")
    yield from _one_of(stage, "captured", "teacher")
    yield from _one_of(stage, "steps", "epochs")
    yield from _objective(stage.objective, f"{path}.objective")
    if stage.objective.selection is not None:
        yield from _selection(recipe, stage, stage.objective.selection.reference)
    if stage.captured is not None:
        yield from _captured(recipe, stage)
    if stage.teacher is not None:
        yield from _online(recipe, stage, stage.teacher)


def _one_of(stage: Stage, first: str, second: str) -> Iterator[Problem]:
    given = [field for field in (first, second) if getattr(stage, field) is not None]
    if len(given) != 1:
        found = f"both {first} and {second}" if given else f"neither {first} nor {second}"
        fix = f"Give `{first}` or `{second}`."
        yield Problem(f"stages.{stage.name}", found, "exactly one of them", fix)


def _objective(objective: DistillationObjective, path: str) -> Iterator[Problem]:
    for field, divergence in OF_ONE_DIVERGENCE.items():
        value, default = getattr(objective, field), type(objective).model_fields[field].default
        if value != default and objective.divergence != divergence:
            fix = f"Remove it, or choose {divergence}."
            yield Problem(f"{path}.{field}", f"{value:g}", f"nothing without {divergence}", fix)


def _selection(recipe: Recipe, stage: DistillStage, reference: str) -> Iterator[Problem]:
    path = f"stages.{stage.name}.objective.selection.reference"
    known = [
        one.name
        for one in above(recipe, stage)
        if isinstance(one, TrainingStage) and one.model == stage.model
    ]
    yield from _checkpoint(recipe, path, reference, known)
    yield from _whole_models(recipe, stage, "the reference runs beside the student")


def _checkpoint(recipe: Recipe, path: str, name: str, known: Sequence[str]) -> Iterator[Problem]:
    """A checkpoint of one of these stages or the import; a best one only where a set decides."""
    if stage_of(name) not in (IMPORT, *known):
        rule = f"{IMPORT} or one of {', '.join(known) or 'no stages'}"
        yield Problem(path, f"'{name}'", rule, did_you_mean(name, [IMPORT, *known]))
        return
    producer = next((one for one in recipe.stages if one.name == stage_of(name)), None)
    decides = isinstance(producer, TrainingStage) and producer.validation.best is not None
    if name.endswith(BEST) and not decides:
        fix = "Set validation.best of that stage, or take its last checkpoint."
        yield Problem(path, f"'{name}'", "a stage with a best checkpoint", fix)


def _whole_models(recipe: Recipe, stage: DistillStage, reason: str) -> Iterator[Problem]:
    if recipe.models.get(stage.model) is None:
        return
    stages = layout_of(recipe, stage).pipeline_parallel
    if stages > 1:
        fix = "Give the stage a layout without pipeline stages, or capture the teacher before."
        field = f"stages.{stage.name}.layout.pipeline_parallel"
        yield Problem(field, str(stages), f"1: {reason}", fix)


def _captured(recipe: Recipe, stage: DistillStage) -> Iterator[Problem]:
    path = f"stages.{stage.name}"
    capture = capture_of(recipe, stage)
    known = [one.name for one in above(recipe, stage) if isinstance(one, CaptureStage)]
    if capture is None or capture.name not in known:
        fix = did_you_mean(str(stage.captured), known)
        yield Problem(f"{path}.captured", f"'{stage.captured}'", "a capture stage above it", fix)
        return
    for field in ("blend", "packing"):
        if field in stage.model_fields_set:
            fix = f"Remove it: the samples are those of '{capture.name}'."
            yield Problem(f"{path}.{field}", "a value", "nothing with `captured`", fix)
    same = (
        ("sequence_length", stage.sequence_length, capture.sequence_length),
        ("objective.temperature", stage.objective.temperature, capture.store.temperature),
    )
    for field, mine, theirs in same:
        if mine != theirs:
            rule = f"{theirs:g}, that of '{capture.name}'"
            yield Problem(f"{path}.{field}", f"{mine:g}", rule, "Give both stages the same.")
    if capture.store.kind == "sampled" and stage.objective.divergence != "forward_kl":
        rule = "forward_kl, of which alone draws give an unbiased estimate"
        fix = f"Choose it, or let '{capture.name}' store top_k."
        yield Problem(f"{path}.objective.divergence", stage.objective.divergence, rule, fix)
    rule = f"a set of the validation of '{capture.name}'"
    yield from unknown(f"{path}.validation.sets", stage.validation.sets, capture.validation, rule)


def _online(recipe: Recipe, stage: DistillStage, teacher: str) -> Iterator[Problem]:
    path = f"stages.{stage.name}"
    if stage.blend is None:
        fix = "Name what the student trains on."
        yield Problem(f"{path}.blend", "nothing", "a blend with `teacher`", fix)
    known = [one.name for one in target_line(recipe, stage)]
    yield from _checkpoint(recipe, f"{path}.teacher", teacher, known)
    yield from _whole_models(recipe, stage, "the teacher runs whole beside the student")


def _speculate(recipe: Recipe, stage: SpeculateStage) -> Iterator[Problem]:
    path = f"stages.{stage.name}"
    exports = [one for one in above(recipe, stage) if isinstance(one, ExportStage)]
    models: tuple[ModelName, ...] = ("target", "draft")
    for model in models:
        known = [one.name for one in exports if one.model == model]
        rule = f"an export stage of the {model} above it"
        yield from unknown(f"{path}.{model}", [getattr(stage, model)], known, rule)
    for field in ("after", "layout"):
        if getattr(stage, field) is not None:
            rule = "nothing: it reads two exports in one process"
            yield Problem(f"{path}.{field}", "a value", rule, "Remove it.")
    yield from repeated(f"{path}.draft_lengths", map(str, stage.draft_lengths))
    yield from repeated(f"{path}.modes", stage.modes)
