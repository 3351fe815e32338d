"""What a distillation stage learns from: a capture's stores, or the target beside the student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.same_tokenizer import require_same_tokenizer
from data_prep.tokenizer import load_tokenizer
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.schema import DistillStage, ModelName, Recipe
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.stages.capture import captured_origins
from megatron_soaes.stages.datasets import Reading
from megatron_soaes.stages.locations import capture_store, checkpoint_root

if TYPE_CHECKING:
    from megatron_soaes.data.blend import Mixture
    from megatron_soaes.data.sample import SampleSource
    from megatron_soaes.training.teaching import FrozenModel, StoredAnswers, Teaching


def teaching_inputs(recipe: Recipe, stage: DistillStage) -> dict[str, Path]:
    """What it reads besides its data and start weights, for a plan."""
    found = {}
    if stage.captured is not None:
        found["store"] = capture_store(recipe, stage.captured)
        for name in stage.validation.sets:
            found[f"store/{name}"] = capture_store(recipe, stage.captured, name)
    if stage.teacher is not None:
        found["teacher"] = checkpoint_root(recipe, stage.teacher, "target")
    if stage.objective.selection is not None:
        reference = stage.objective.selection.reference
        found["reference"] = checkpoint_root(recipe, reference, stage.model)
    return found


def check_tokenizers(recipe: Recipe, stage: DistillStage) -> None:
    """UserError at the first difference between the tokenizers of teacher and student."""
    require_same_tokenizer(recipe.models.target.source, graph.model_of(recipe, stage).source)


def teaching_of(
    reading: Reading,
    stage: DistillStage,
    shapes: dict[ModelName, ModelShape],
    mixture: Mixture,
    sets: Mapping[str, SampleSource],
) -> Teaching:
    """The teacher and the objective of a stage (collective).

    Raises UserError for stores that were captured from something else.
    """
    from megatron_soaes.training.drafting import Window
    from megatron_soaes.training.teaching import Teaching

    recipe = reading.recipe
    student = graph.model_of(recipe, stage)
    info, _ = load_tokenizer(student.source, add_special_tokens=False)
    selection, wanted = stage.objective.selection, stage.draft_window
    size = shapes[stage.model].parameters / shapes["target"].parameters
    return Teaching(
        settings=stage.objective,
        vocab_size=info.largest_id + 1,
        window=Window(wanted.longest, wanted.cost_ratio or size),
        teacher=(
            _frozen(recipe, stage.teacher, "target", shapes)
            if stage.teacher is not None
            else _stored(reading, stage, mixture, sets)
        ),
        reference=_frozen(recipe, selection.reference, stage.model, shapes) if selection else None,
    )


def _frozen(
    recipe: Recipe, checkpoint: str, model: ModelName, shapes: dict[ModelName, ModelShape]
) -> FrozenModel:
    from megatron_soaes.training.teaching import FrozenModel

    root = checkpoint_root(recipe, checkpoint, model)
    return FrozenModel(shapes[model], root, checkpoint.endswith(graph.BEST))


def _stored(
    reading: Reading, stage: DistillStage, mixture: Mixture, sets: Mapping[str, SampleSource]
) -> StoredAnswers:
    """The stores of the stage's capture (collective)."""
    from megatron_soaes.data.blend import Passes
    from megatron_soaes.data.teacher_store import TeacherStore
    from megatron_soaes.training.teaching import StoredAnswers

    recipe = reading.recipe
    capture = graph.capture_of(recipe, stage)
    assert capture is not None and isinstance(mixture, Passes)
    origins = captured_origins(reading, capture, mixture.whole, sets)
    stores = {
        name: TeacherStore(capture_store(recipe, capture.name, name), origin)
        for name, origin in origins.items()
    }
    training = stores.pop(None)
    return StoredAnswers(training, mixture.order, {str(name): one for name, one in stores.items()})
