"""How the stages of a run hang together: order, starting points, layouts."""

from __future__ import annotations

from itertools import takewhile

from megatron_soaes.recipe.data_settings import Blend
from megatron_soaes.recipe.schema import (
    CaptureStage,
    CPTStage,
    DistillStage,
    ModelName,
    ModelSource,
    Recipe,
    SFTStage,
    SingleStage,
    SpeculateStage,
    Stage,
    TrainingStage,
)
from megatron_soaes.recipe.training_settings import Layout

IMPORT = "import"
"""What `after` and `checkpoints` call the imported model."""
BEST = "@best"
"""Ends the name of a stage's best checkpoint; without it the last one is meant."""


def model_of(recipe: Recipe, stage: Stage) -> ModelSource:
    """The model a stage works on. Raises KeyError for a draft that the recipe does not declare."""
    model = recipe.models.get(stage.model)
    if model is None:
        raise KeyError(stage.model)
    return model


def layout_of(recipe: Recipe, stage: Stage) -> Layout:
    """The stage's own layout, or its model's."""
    return stage.layout or model_of(recipe, stage).layout


def producers_above(recipe: Recipe, stage: Stage) -> list[TrainingStage]:
    """The training stages of the same model above `stage`, in order."""
    above = takewhile(lambda other: other.name != stage.name, recipe.stages)
    return [
        other for other in above if isinstance(other, TrainingStage) and other.model == stage.model
    ]


def start_of(recipe: Recipe, stage: Stage) -> str:
    """The checkpoint that `stage` starts from: `STAGE`, `STAGE@best` or `IMPORT`.

    Not for `evaluate` stages. A single-stage control is nobody's start unless it is named.
    """
    if stage.after is not None:
        return stage.after
    if isinstance(stage, SingleStage):
        parts = parts_of(recipe, stage)
        return start_of(recipe, parts[0]) if parts else IMPORT
    line = [one for one in producers_above(recipe, stage) if not isinstance(one, SingleStage)]
    return line[-1].name if line else IMPORT


def stage_of(checkpoint: str) -> str:
    """The stage (or `IMPORT`) that a checkpoint's name speaks of."""
    return checkpoint.removesuffix(BEST)


def parts_of(recipe: Recipe, stage: SingleStage) -> list[SFTStage]:
    """The stages whose samples a single-stage control takes, as far as they exist."""
    known = {one.name: one for one in recipe.stages if isinstance(one, SFTStage)}
    return [known[name] for name in stage.of if name in known]


def capture_of(recipe: Recipe, stage: DistillStage) -> CaptureStage | None:
    """The capture that a distillation reads, if it reads one that exists."""
    known = {one.name: one for one in recipe.stages if isinstance(one, CaptureStage)}
    return known.get(stage.captured) if stage.captured else None


def blends_of(recipe: Recipe, stage: TrainingStage | CaptureStage) -> list[Blend]:
    """What a stage reads: its blend, or those of the stages it stands for."""
    match stage:
        case CPTStage() | SFTStage() | CaptureStage():
            return [recipe.data.blends[stage.blend]]
        case SingleStage():
            return [recipe.data.blends[part.blend] for part in parts_of(recipe, stage)]
        case DistillStage():
            capture = capture_of(recipe, stage)
            name = capture.blend if capture else stage.blend
            return [recipe.data.blends[name]] if name else []
    raise TypeError(type(stage))


def datasets_of(recipe: Recipe, stage: TrainingStage | CaptureStage) -> list[str]:
    """Names of the datasets that a stage trains on, or captures."""
    return list(dict.fromkeys(name for blend in blends_of(recipe, stage) for name in blend.names()))


def steps_of(recipe: Recipe, stage: TrainingStage) -> int | None:
    """Optimizer steps, None where passes over data that is not packed yet decide."""
    match stage:
        case CPTStage() | SFTStage() | DistillStage():
            return stage.steps
        case SingleStage():
            steps = [part.steps for part in parts_of(recipe, stage)]
            return None if None in steps else sum(filter(None, steps))
    raise TypeError(type(stage))


def target_line(recipe: Recipe, stage: Stage) -> list[TrainingStage]:
    """The target's training stages above a stage, in order: where a teacher may come from."""
    above = takewhile(lambda other: other.name != stage.name, recipe.stages)
    return [one for one in above if isinstance(one, TrainingStage) and one.model == "target"]


def preprocess_node(dataset: str) -> str:
    """Name of the step that tokenizes a dataset."""
    return f"preprocess-{dataset}"


def import_node(model: ModelName) -> str:
    """Name of the step that imports a model."""
    return f"import-{model}"


def nodes(recipe: Recipe) -> list[str]:
    """Names of every step of a run in the order in which they run.

    One preprocessing step for each dataset to tokenize, one import for each model in use, then the
    stages of the recipe.
    """
    used = {stage.model for stage in recipe.stages if not isinstance(stage, SpeculateStage)}
    if any(isinstance(stage, DistillStage) and stage.teacher for stage in recipe.stages):
        used.add("target")
    models: tuple[ModelName, ...] = ("target", "draft")
    return [
        *(preprocess_node(name) for name, dataset in recipe.data.datasets.items() if dataset.files),
        *(import_node(model) for model in models if model in used),
        *(stage.name for stage in recipe.stages),
    ]
