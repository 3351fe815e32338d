"""Whether the disk of a run's folder holds what the run will write."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron_soaes.errors import UserError
from megatron_soaes.planner.memory import capture_store_bytes, checkpoint_bytes
from megatron_soaes.planner.workload import workload_of
from megatron_soaes.preflight.findings import Found
from megatron_soaes.recipe.graph import steps_of
from megatron_soaes.recipe.schema import (
    CaptureStage,
    ExportStage,
    ModelName,
    Recipe,
    TrainingStage,
)
from megatron_soaes.recipe.shapes import ModelShape

GB = 1e9
EXPORTED_BYTES = 2
"""Of a weight in bf16."""
Shapes = Mapping[ModelName, ModelShape]


def check_disk(recipe: Recipe, shapes: Shapes) -> Found:
    """Checkpoints, stores and exports against the free space of the run's folder.

    What was written by an earlier run is not counted again: it is in neither figure. Tokenized
    text is smaller than the text itself and is left out.
    """
    needs = dict(_needs(recipe, shapes))
    for stage, needed in needs.items():
        said = "depends on the data, not counted" if needed is None else f"{needed / GB:,.1f} GB"
        yield f"{stage}: {said}"
    folder = next(one for one in (recipe.workdir, *recipe.workdir.parents) if one.exists())
    total = sum(filter(None, needs.values())) - _written(recipe.workdir)
    free = shutil.disk_usage(folder).free
    if total > free:
        yield UserError(
            folder, f"{free / GB:,.1f} GB free", f"{total / GB:,.1f} GB",
            "Choose another workdir, or keep fewer checkpoints (checkpoints.keep_last).",
        )  # fmt: skip
    yield f"{folder}: {free / GB:,.1f} GB free, {max(total, 0) / GB:,.1f} GB wanted"


def _needs(recipe: Recipe, shapes: Shapes) -> Iterator[tuple[str, int | None]]:
    for model, shape in shapes.items():
        yield f"import-{model}", shape.parameters * EXPORTED_BYTES
    for stage in recipe.stages:
        if isinstance(stage, TrainingStage):
            kept = most_kept(stage, steps_of(recipe, stage))
            each = checkpoint_bytes(workload_of(recipe, stage, shapes))
            yield stage.name, None if kept is None else kept * each
        elif isinstance(stage, CaptureStage):
            held_out = len(stage.validation) * stage.validation_samples
            samples = None if stage.samples is None else stage.samples + held_out
            yield stage.name, None if samples is None else capture_store_bytes(stage, samples)
        elif isinstance(stage, ExportStage):
            yield stage.name, shapes[stage.model].parameters * EXPORTED_BYTES


def most_kept(stage: TrainingStage, steps: int | None) -> int | None:
    """Checkpoints of a stage on the disk at once, at most; None where that depends on the data.

    One is deleted only after the next is complete.
    """
    settings = stage.checkpoints
    saves = None if steps is None else math.ceil(steps / settings.every)
    if settings.keep_last is None:
        return saves
    kept = settings.keep_last + 1 + int(stage.validation.best is not None)
    if settings.keep_every is not None:
        if steps is None:
            return None
        kept += steps // math.lcm(settings.every, settings.keep_every)
    return kept if saves is None else min(kept, saves)


def _written(workdir: Path) -> int:
    return sum(file.stat().st_size for file in workdir.rglob("*") if file.is_file())
