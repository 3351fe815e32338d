"""How the stages of a run hang together: order, starting points, layouts."""

from __future__ import annotations

from itertools import takewhile

from megatron_soaes.recipe.schema import (
    EvaluateStage,
    Layout,
    ModelName,
    ModelSource,
    Recipe,
    Stage,
    TrainingStage,
)

IMPORT = "import"
"""What `after` and `checkpoints` call the imported model."""


def model_of(recipe: Recipe, stage: Stage) -> ModelSource:
    """The model a stage works on. Raises KeyError for a draft that the recipe does not declare."""
    model = recipe.models.get(stage.model)
    if model is None:
        raise KeyError(stage.model)
    return model


def layout_of(recipe: Recipe, stage: Stage) -> Layout:
    """The stage's own layout, or its model's."""
    return stage.layout or model_of(recipe, stage).layout


def producers_above(recipe: Recipe, stage: Stage) -> list[str]:
    """Names of the training stages of the same model above `stage`, in order."""
    above = takewhile(lambda other: other.name != stage.name, recipe.stages)
    return [
        other.name
        for other in above
        if isinstance(other, TrainingStage) and other.model == stage.model
    ]


def start_of(recipe: Recipe, stage: Stage) -> str:
    """The stage whose checkpoint `stage` starts from, or `IMPORT`; not for `evaluate` stages."""
    above = producers_above(recipe, stage)
    return stage.after or (above[-1] if above else IMPORT)


def checkpoints_read(recipe: Recipe, stage: Stage) -> list[str]:
    """Every stage (or `IMPORT`) whose checkpoint `stage` reads."""
    if isinstance(stage, EvaluateStage):
        return list(stage.checkpoints)
    return [start_of(recipe, stage)]


def preprocess_node(dataset: str) -> str:
    """Name of the step that tokenizes a dataset."""
    return f"preprocess-{dataset}"


def import_node(model: ModelName) -> str:
    """Name of the step that imports a model."""
    return f"import-{model}"


def nodes(recipe: Recipe) -> list[str]:
    """Names of every step of a run in the order in which they run.

    One preprocessing step for each dataset with text, one import for each model that a stage works
    on, then the stages of the recipe.
    """
    used = {stage.model for stage in recipe.stages}
    models: tuple[ModelName, ...] = ("target", "draft")
    return [
        *(preprocess_node(name) for name, dataset in recipe.data.datasets.items() if dataset.text),
        *(import_node(model) for model in models if model in used),
        *(stage.name for stage in recipe.stages),
    ]
