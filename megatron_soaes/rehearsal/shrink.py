"""A recipe in small: the same stages, plumbing, schedules and kinds of layout, less of everything.

Only amounts change, and what a machine without a GPU cannot do. Models, text and paths are
`material.py`'s. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from megatron_soaes.recipe import graph
from megatron_soaes.recipe.data_settings import Data
from megatron_soaes.recipe.evaluation_settings import Evaluation, FewShot
from megatron_soaes.recipe.schema import (
    AnyStage,
    CaptureStage,
    DistillStage,
    ExportStage,
    ModelName,
    Models,
    ModelSource,
    PreciseStage,
    Recipe,
    RespondStage,
    SFTStage,
    SingleStage,
    SpeculateStage,
    Stage,
    TrainingStage,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Kernels, Layout, Schedule
from megatron_soaes.rehearsal.changes import Changes, with_parts
from megatron_soaes.rehearsal.gates import without_bounds
from megatron_soaes.rehearsal.layouts import DEGREE, layers_for, small_values

STEPS = 4
WARMUP_STEPS = 1
DECAY_STEPS = 1
EVERY = 2
"""Steps between checkpoints and between validations: each happens twice."""
SEQUENCE_LENGTH = 256
SEQUENCE_MULTIPLE = 8
"""Of 2 x CP x TP, the most that any small layout asks of a document."""
HOLDOUT = 0.25
"""At least, of a dataset that holds something back: what is left of it is a few records."""
PASSES = 3.0
"""At most, over any dataset."""
ITEMS = 4
"""Prompts, samples and questions."""
NEW_TOKENS = 8
SHARD_BYTES = 500_000
"""Several files for the smallest of models."""

AnyPart = TypeVar("AnyPart", bound=Stage)
Cuts = Mapping[ModelName, tuple[int, int]]
"""Layers of each model, and of its stand-in."""


def shrink(recipe: Recipe, shapes: Mapping[ModelName, ModelShape]) -> tuple[Recipe, Changes]:
    """The recipe in small, for models with the layers of `small_layers`, and what was changed.

    `recipe` keeps every rule, and so does the result once its models are in place. The cluster is
    taken away; the workdir, the sources and all files are still those of the recipe.
    """
    changes = Changes()
    cuts = {name: (one.layers, small_layers(recipe, name)) for name, one in shapes.items()}
    batches = _batches(recipe)
    small = with_parts(
        changes.set(recipe, "recipe", cluster=None),
        models=_models(recipe.models, cuts, changes),
        data=_data(recipe, changes),
        stages=[_stage(recipe, one, cuts, batches, changes) for one in recipe.stages],
        evaluation=_evaluation(recipe.evaluation, changes),
    )
    if any(isinstance(one, ExportStage) for one in recipe.stages):
        size = min(recipe.export.shard_bytes, SHARD_BYTES)
        small = with_parts(small, export=changes.set(recipe.export, "export", shard_bytes=size))
    return small, changes


def layouts_of(recipe: Recipe, name: ModelName) -> list[Layout]:
    """Every layout in which a model is built."""
    return [graph.layout_of(recipe, one) for one in recipe.stages if one.model == name]


def small_layers(recipe: Recipe, name: ModelName) -> int:
    """Layers of a model's stand-in: enough for every layout of the model in small."""
    return layers_for(layouts_of(recipe, name))


def small_length(length: int) -> int:
    """Tokens of a small sample, of which every small layout can cut its part."""
    return max(min(length, SEQUENCE_LENGTH) // SEQUENCE_MULTIPLE, 1) * SEQUENCE_MULTIPLE


def _models(models: Models, cuts: Cuts, changes: Changes) -> Models:
    small = {}
    for name, cut in cuts.items():
        model = models.get(name)
        assert model is not None
        where = f"models.{name}"
        layout = _layout(model.layout, where, cut, changes)
        small[name] = with_parts(_vocabulary(model, where, changes), layout=layout)
    return with_parts(models, **small)


def _vocabulary(model: ModelSource, where: str, changes: Changes) -> ModelSource:
    """Rows that two tensor-parallel processes share evenly."""
    multiple = math.lcm(model.vocab_size_multiple, DEGREE)
    return changes.set(model, where, vocab_size_multiple=multiple)


def _layout(layout: Layout, where: str, cut: tuple[int, int], changes: Changes) -> Layout:
    return changes.set(layout, where, "layout", **small_values(layout, *cut))


def _data(recipe: Recipe, changes: Changes) -> Data:
    datasets = {}
    for name, dataset in recipe.data.datasets.items():
        holdout = max(dataset.holdout, HOLDOUT) if dataset.holdout else 0.0
        datasets[name] = changes.set(dataset, f"data.datasets.{name}", holdout=holdout)
    return with_parts(recipe.data, datasets=datasets) if datasets else recipe.data


def _stage(
    recipe: Recipe, stage: AnyStage, cuts: Cuts, batches: Mapping[str, int], changes: Changes
) -> AnyStage:
    where = f"stages.{stage.name}"
    small: Any = changes.set(stage, where, gates=without_bounds(stage.gates))
    if stage.layout is not None:
        layout = _layout(stage.layout, where, cuts[stage.model], changes)
        small = with_parts(small, layout=layout)
    if isinstance(stage, PreciseStage):
        precision = changes.set(stage.precision, where, "precision", fp8=None)
        small = with_parts(
            changes.set(small, where, sequence_length=small_length(stage.sequence_length)),
            precision=precision,
        )
    match stage:
        case TrainingStage():
            return _training(recipe, small, where, batches[stage.name], changes)
        case CaptureStage():
            return _capture(recipe, small, where, changes)
        case RespondStage():
            return _respond(small, where, changes)
        case SpeculateStage():
            return _speculate(small, where, changes)
    return small


def _training(recipe: Recipe, stage: AnyPart, where: str, batch: int, changes: Changes) -> AnyPart:
    assert isinstance(stage, TrainingStage)
    steps = graph.steps_of(recipe, stage)
    validation, saved = stage.validation, stage.checkpoints
    # So few that one is deleted.
    keep = {} if saved.keep_last is None else {"keep_last": 1}
    if saved.keep_every is not None:
        keep["keep_every"] = min(saved.keep_every, STEPS)
    small = with_parts(
        stage,
        optimizer=changes.set(stage.optimizer, where, "optimizer", precision_aware=None),
        schedule=_schedule(stage.schedule, where, min(steps or STEPS, STEPS), changes),
        validation=changes.set(
            validation, where, "validation", every=min(validation.every, EVERY), batches=1
        ),
        checkpoints=changes.set(saved, where, "checkpoints", every=min(saved.every, EVERY), **keep),
    )
    small = changes.set(
        small,
        where,
        kernels=Kernels(),
        overlap=stage.overlap.model_copy(update={"tensor_parallel": False}),
        micro_batch_size=_micro_batch(stage.micro_batch_size),
        global_batch_size=batch,
        log_every=1,
        **_length(recipe, stage),
    )
    return _profiled(small, where, changes)


def _profiled(stage: AnyPart, where: str, changes: Changes) -> AnyPart:
    """Early steps of the first rank, which there is in every layout."""
    assert isinstance(stage, TrainingStage)
    if stage.profile is None:
        return stage
    first, last = (min(step, DEGREE) for step in stage.profile.steps)
    profile = changes.set(stage.profile, where, "profile", steps=(first, last), ranks=[0])
    return with_parts(stage, profile=profile)


def _length(recipe: Recipe, stage: TrainingStage) -> dict[str, Any]:
    """Steps, or the passes over a few records that stand for them."""
    if isinstance(stage, SingleStage):
        return {}
    steps: int | None = getattr(stage, "steps", None)
    if steps is not None:
        return {"steps": min(steps, STEPS)}
    if isinstance(stage, SFTStage):
        return {"epochs": _passes(stage.epochs, recipe.data.blends[stage.blend].weights)}
    if isinstance(stage, DistillStage):
        weights = recipe.data.blends[stage.blend].weights if stage.blend else {}
        return {"epochs": _passes(stage.epochs, weights)}
    return {}


def _passes(epochs: float | None, weights: Mapping[str, float]) -> float | None:
    """As many passes as were wanted, but not more than `PASSES` over any dataset."""
    if epochs is None:
        return None
    return min(epochs, PASSES / max([1.0, *weights.values()]))


def _schedule(schedule: Schedule, where: str, steps: int, changes: Changes) -> Schedule:
    """Warm-up, plateau and decay, each a step at least where there are steps for it."""
    warmup = min(schedule.warmup_steps, WARMUP_STEPS)
    values: dict[str, Any] = {"warmup_steps": warmup}
    if schedule.shape == "wsd" and warmup + DECAY_STEPS <= steps:
        values["decay_steps"] = DECAY_STEPS
    return changes.set(schedule, where, "schedule", **values)


def _micro_batch(size: int) -> int:
    return min(size, DEGREE)


def _batches(recipe: Recipe) -> dict[str, int]:
    """The global batch of every training stage: one micro-batch of each replica, two if more.

    A single-stage control and its parts share one, a multiple of what each of them needs.
    """
    training = [one for one in recipe.stages if isinstance(one, TrainingStage)]
    found = {}
    for stage in training:
        layout = graph.layout_of(recipe, stage)
        whole = stage.micro_batch_size * layout.data_parallel
        several = stage.global_batch_size > whole
        replicas = min(layout.data_parallel, DEGREE)
        found[stage.name] = _micro_batch(stage.micro_batch_size) * replicas * (1 + several)
    for stage in training:
        if isinstance(stage, SingleStage):
            together = [stage.name, *(part.name for part in graph.parts_of(recipe, stage))]
            found |= dict.fromkeys(together, max(found[name] for name in together))
    return found


def _capture(recipe: Recipe, stage: CaptureStage, where: str, changes: Changes) -> CaptureStage:
    length: dict[str, Any] = {"epochs": None}
    if stage.samples is not None:
        length = {"samples": min(stage.samples, 2 * ITEMS)}
    elif stage.epochs is not None:
        weights = recipe.data.blends[stage.blend].weights
        length = {"epochs": _passes(stage.epochs, weights)}
    store = changes.set(
        stage.store,
        where,
        "store",
        entries=min(stage.store.entries, 32),
        samples_per_shard=min(stage.store.samples_per_shard, ITEMS),
    )
    return changes.set(
        with_parts(stage, store=store),
        where,
        micro_batch_size=_micro_batch(stage.micro_batch_size),
        validation_samples=min(stage.validation_samples, ITEMS),
        **length,
    )


def _respond(stage: RespondStage, where: str, changes: Changes) -> RespondStage:
    sampling = changes.set(
        stage.sampling,
        where,
        "sampling",
        max_new_tokens=min(stage.sampling.max_new_tokens, NEW_TOKENS),
    )
    server: dict[str, Any] = {}
    if stage.backend == "endpoint":
        server = {"backend": "lean", "url": None, "served_model": None}
    return changes.set(
        with_parts(stage, sampling=sampling),
        where,
        prompts_per_dataset=min(stage.prompts_per_dataset or ITEMS, ITEMS),
        document_prefix=min(stage.document_prefix, NEW_TOKENS),
        batch_size=min(stage.batch_size, ITEMS),
        **server,
    )


def _speculate(stage: SpeculateStage, where: str, changes: Changes) -> SpeculateStage:
    ends = sorted({min(stage.draft_lengths), max(stage.draft_lengths)})
    return changes.set(
        stage,
        where,
        most_prompts=min(stage.most_prompts or 2, 2),
        draft_lengths=ends,
        repeats=min(stage.repeats, 2),
        max_new_tokens=min(stage.max_new_tokens, NEW_TOKENS),
    )


def _evaluation(evaluation: Evaluation, changes: Changes) -> Evaluation:
    if not (evaluation.perplexity or evaluation.tasks):
        return evaluation
    where = "evaluation"
    shown = {
        name: changes.set(one, where, f"few_shot.{name}", count=min(one.count, 2))
        for name, one in evaluation.few_shot.items()
    }
    small: dict[str, FewShot] | None = shown or None
    return changes.set(
        with_parts(evaluation, few_shot=small) if small else evaluation,
        where,
        max_new_tokens=min(evaluation.max_new_tokens, NEW_TOKENS),
        batch_size=min(evaluation.batch_size, ITEMS),
        sequence_length=small_length(evaluation.sequence_length),
        micro_batch_size=_micro_batch(evaluation.micro_batch_size),
        # Which parts a suite has is known from its own file, of which a few lines are left.
        targets=[one for one in evaluation.targets if "[" not in one],
    )
