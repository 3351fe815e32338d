"""Names in a recipe: each unique, each known, and no validation set that was trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from megatron_soaes.recipe.check_distillation import check_answers_in_time
from megatron_soaes.recipe.check_gates import gate_problems
from megatron_soaes.recipe.check_sft import check_blend_kind, check_passes, check_single_stage
from megatron_soaes.recipe.data_settings import Dataset
from megatron_soaes.recipe.graph import (
    BEST,
    IMPORT,
    import_node,
    preprocess_node,
    producers_above,
    stage_of,
)
from megatron_soaes.recipe.problems import Problem, did_you_mean, repeated, unknown
from megatron_soaes.recipe.schema import (
    CaptureStage,
    CPTStage,
    DistillStage,
    EvaluateStage,
    Recipe,
    RespondStage,
    SFTStage,
    SingleStage,
    SpeculateStage,
    Stage,
    TrainingStage,
)


def check_references(recipe: Recipe) -> list[Problem]:
    """Every broken rule about datasets, blends, validation sets, stage names and gates."""
    return [
        *_datasets(recipe),
        *_blends(recipe),
        *_stage_names(recipe),
        *(problem for stage in recipe.stages for problem in _stage(recipe, stage)),
        *_held_out(recipe, "evaluation.perplexity", recipe.evaluation.perplexity),
    ]


SOURCES = ("text", "conversations", "indexed", "indexed_conversations", "responses")
READING = {"key": "text", "chat": "conversations"}
"""Settings of a dataset that only mean something beside another field."""


def _datasets(recipe: Recipe) -> Iterator[Problem]:
    for name, dataset in recipe.data.datasets.items():
        path = f"data.datasets.{name}"
        given = [field for field in SOURCES if getattr(dataset, field)]
        if len(given) != 1:
            fix = f"Give one of {', '.join(SOURCES)}."
            yield Problem(path, " and ".join(given) or "no source", "exactly one source", fix)
        for setting, needed in READING.items():
            changed = getattr(dataset, setting) != Dataset.model_fields[setting].default
            if changed and given != [needed]:
                fix = f"Remove it: only `{needed}` is read with it."
                yield Problem(f"{path}.{setting}", "a value", f"none without `{needed}`", fix)


def _blends(recipe: Recipe) -> Iterator[Problem]:
    for name, blend in recipe.data.blends.items():
        parts = [(f"data.blends.{name}.weights", blend.weights)]
        if blend.replay:
            parts.append((f"data.blends.{name}.replay.weights", blend.replay.weights))
        for path, weights in parts:
            if not weights:
                yield Problem(path, "no dataset", "at least one dataset", "Add `dataset: weight`.")
            yield from unknown(path, weights, recipe.data.datasets, "a dataset of data.datasets")
        for dataset in blend.shares() if all(weights for _, weights in parts) else ():
            source = recipe.data.datasets.get(dataset)
            if source and source.holdout == 1:
                fix = "Lower the holdout, or take the dataset out of the blend."
                rule = f"less than 1, because blend '{name}' trains on it"
                yield Problem(f"data.datasets.{dataset}.holdout", "1.0", rule, fix)


def _stage_names(recipe: Recipe) -> Iterator[Problem]:
    nodes = {preprocess_node(name) for name in recipe.data.datasets}
    reserved = {IMPORT, import_node("target"), import_node("draft"), *nodes}
    for name, count in Counter(stage.name for stage in recipe.stages).items():
        path = f"stages.{name}.name"
        if count > 1:
            yield Problem(path, f"'{name}' {count} times", "a name of its own", "Rename one stage.")
        if name in reserved:
            rule = "a name that no other step of the run has"
            yield Problem(path, f"'{name}'", rule, "Rename the stage.")


def _stage(recipe: Recipe, stage: Stage) -> Iterator[Problem]:
    path = f"stages.{stage.name}"
    if recipe.models.get(stage.model) is None:
        fix = "Declare `models.draft`, or set the stage's `model` to target."
        yield Problem(f"{path}.model", stage.model, "a declared model", fix)
    if isinstance(stage, EvaluateStage):
        if stage.after is not None:
            fix = "Remove `after`; list what to compare in `checkpoints`."
            yield Problem(f"{path}.after", stage.after, "nothing in an evaluate stage", fix)
        yield from _starts(recipe, stage, f"{path}.checkpoints", stage.checkpoints)
        yield from repeated(f"{path}.checkpoints", stage.checkpoints)
    elif stage.after is not None and not isinstance(stage, SpeculateStage):
        yield from _starts(recipe, stage, f"{path}.after", [stage.after])
    if isinstance(stage, TrainingStage):
        yield from _training_data(recipe, stage)
    if isinstance(stage, CaptureStage):
        yield from _blend(recipe, stage, stage.blend)
        yield from _held_out(recipe, f"{path}.validation", stage.validation)
        yield from check_passes(recipe, stage)
        yield from check_answers_in_time(recipe, stage, stage.validation)
    yield from gate_problems(recipe, stage)


def _starts(recipe: Recipe, stage: Stage, path: str, names: Sequence[str]) -> Iterator[Problem]:
    """Checkpoints of stages above; a best one only of a stage that says which set decides."""
    above = {one.name: one for one in producers_above(recipe, stage)}
    rule = f"{IMPORT} or a training stage of the {stage.model} above it"
    for name in names:
        producer = above.get(stage_of(name))
        if stage_of(name) != IMPORT and producer is None:
            yield Problem(path, f"'{name}'", rule, did_you_mean(name, [IMPORT, *above]))
        elif name.endswith(BEST) and (producer is None or producer.validation.best is None):
            fix = "Set validation.best of that stage, or take its last checkpoint."
            yield Problem(path, f"'{name}'", "a stage with a best checkpoint", fix)


def _training_data(recipe: Recipe, stage: TrainingStage) -> Iterator[Problem]:
    path = f"stages.{stage.name}"
    match stage:
        case CPTStage() | SFTStage():
            yield from _blend(recipe, stage, stage.blend)
            if stage.blend in recipe.data.blends:
                yield from check_blend_kind(recipe, stage)
        case DistillStage() if stage.blend is not None:
            yield from _blend(recipe, stage, stage.blend)
            yield from check_passes(recipe, stage)
        case SingleStage():
            yield from check_single_stage(recipe, stage)
    sets = stage.validation.sets
    yield from _held_out(recipe, f"{path}.validation.sets", sets)
    if stage.validation.best is not None:
        rule = "a set of the stage's validation.sets"
        yield from unknown(f"{path}.validation.best", [stage.validation.best], sets, rule)
    yield from check_answers_in_time(recipe, stage, sets)
    yield from repeated(f"{path}.allow_changes", stage.allow_changes)


def _blend(recipe: Recipe, stage: Stage, name: str) -> Iterator[Problem]:
    """A blend that is there, of data that is there when the stage runs."""
    blends = recipe.data.blends
    yield from unknown(f"stages.{stage.name}.blend", [name], blends, "one of data.blends")
    if name in blends:
        yield from check_answers_in_time(recipe, stage, blends[name].names())


def _held_out(recipe: Recipe, path: str, sets: Sequence[str]) -> Iterator[Problem]:
    """Validation sets must be known, named once, and unseen by every training stage."""
    yield from unknown(path, sets, recipe.data.datasets, "a dataset of data.datasets")
    yield from repeated(path, sets)
    for name in sets:
        dataset = recipe.data.datasets.get(name)
        trainers = [stage.name for stage in recipe.stages if _trains_on(recipe, stage, name)]
        if dataset and dataset.holdout == 0 and trainers:
            yield Problem(
                path,
                f"'{name}', which stage '{trainers[0]}' trains on whole",
                "a dataset held out from training",
                f"Set data.datasets.{name}.holdout above 0, or take it out of the blend.",
            )


def _trains_on(recipe: Recipe, stage: Stage, dataset: str) -> bool:
    """Whether a stage's weights see a dataset, directly or as prompts that a model answers."""
    if isinstance(stage, RespondStage):
        return dataset in stage.prompts
    if not isinstance(stage, CPTStage | SFTStage | DistillStage | CaptureStage):
        return False
    blend = recipe.data.blends.get(stage.blend) if stage.blend else None
    return blend is not None and dataset in blend.names()
