"""Whether the disk of a run's folder holds what the run will write."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from data_prep.indexed import token_dtype
from data_prep.ranges import find_inputs
from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.init.corpus import BYTES_PER_TOKEN, COMPRESSION, estimated_tokens
from megatron_soaes.planner.memory import capture_store_bytes, checkpoint_bytes
from megatron_soaes.planner.workload import workload_of
from megatron_soaes.preflight.findings import Found
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.schema import (
    AnyStage,
    CaptureStage,
    ExportStage,
    ModelName,
    Recipe,
    RespondStage,
    TrainingStage,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.stages.preprocess import PreprocessStage

GB = 1e9
EXPORTED_BYTES = 2
"""Of a weight in bf16."""
LOSS_WEIGHT_BYTES = 4
"""Beside each token of a conversation."""
ESTIMATE = (
    f"estimated: a token for each {BYTES_PER_TOKEN} bytes of text, "
    f"compressed text unpacked to {COMPRESSION} times its size"
)
Shapes = Mapping[ModelName, ModelShape]


def check_disk(recipe: Recipe, shapes: Shapes) -> Found:
    """Tokens, checkpoints, stores and exports against the free space of the run's folder.

    What a stage has written is no longer needed, and no longer free either: it is taken off that
    stage's need. Answers, results and reports are text, and small: they are left out.
    """
    folder = next(one for one in (recipe.workdir, *recipe.workdir.parents) if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        found = "a folder that is not yours to write in" if folder.is_dir() else "a file"
        fix = "Choose another workdir, or make way for it."
        raise UserError(folder, found, "a folder that can be written", fix)
    needs = dict(_needs(recipe, shapes))
    for stage, needed in needs.items():
        if needed is None:
            yield f"{stage}: depends on the data, not counted"
        else:
            why = f" ({ESTIMATE})" if stage in _preprocessing(recipe) else ""
            yield f"{stage}: {needed / GB:,.1f} GB{why}"
    uncounted = ", ".join(stage for stage, needed in needs.items() if needed is None)
    total = sum(
        max(0, needed - written(recipe.workdir / stage))
        for stage, needed in needs.items()
        if needed is not None
    )
    wanted = f"{total / GB:,.1f} GB" + (f" without {uncounted}" if uncounted else "")
    free = shutil.disk_usage(folder).free
    if total > free:
        yield UserError(
            folder, f"{free / GB:,.1f} GB free", wanted,
            "Choose another workdir, or keep fewer checkpoints (checkpoints.keep_last).",
        )  # fmt: skip
    else:
        yield f"{folder}: {free / GB:,.1f} GB free, {wanted} wanted"


def written(folder: Path) -> int:
    """Bytes of all files below a folder, beside a run that may be writing and removing some."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).lstat().st_size
    return total


def _preprocessing(recipe: Recipe) -> dict[str, str]:
    """The datasets to tokenize, by the names of their stages."""
    datasets = recipe.data.datasets.items()
    return {graph.preprocess_node(name): name for name, one in datasets if one.files}


def _needs(recipe: Recipe, shapes: Shapes) -> Iterator[tuple[str, int | None]]:
    for node, name in _preprocessing(recipe).items():
        yield node, _tokenized(recipe, name, shapes["target"])
    nodes = graph.nodes(recipe)
    for model, shape in shapes.items():
        if graph.import_node(model) in nodes:
            yield graph.import_node(model), shape.parameters * EXPORTED_BYTES
    for stage in recipe.stages:
        if isinstance(stage, TrainingStage | CaptureStage | ExportStage) or _copies(stage):
            yield stage.name, _need(recipe, stage, shapes)


def _copies(stage: AnyStage) -> bool:
    """Whether a stage answers from an HF copy of its checkpoint."""
    return isinstance(stage, RespondStage) and stage.backend == "lean"


def _need(recipe: Recipe, stage: AnyStage, shapes: Shapes) -> int | None:
    """Bytes of a stage's results at most; None where that depends on the data."""
    if isinstance(stage, TrainingStage):
        kept = most_kept(stage, graph.steps_of(recipe, stage))
        return None if kept is None else kept * checkpoint_bytes(workload_of(recipe, stage, shapes))
    if isinstance(stage, CaptureStage):
        if stage.samples is None:
            return None
        held_out = len(stage.validation) * stage.validation_samples
        return capture_store_bytes(stage, stage.samples + held_out)
    return shapes[stage.model].parameters * EXPORTED_BYTES


def _tokenized(recipe: Recipe, name: str, shape: ModelShape) -> int | None:
    """Bytes of a dataset's tokens; None where its text is not there, which its own check says."""
    dataset = recipe.data.datasets[name]
    try:
        stage = PreprocessStage(recipe, graph.preprocess_node(name), name)
        found = find_inputs(tuple(map(str, stage.files())))
    except UserError:
        return None
    each = token_dtype(shape.vocab_size).itemsize + LOSS_WEIGHT_BYTES * dataset.is_chat
    return estimated_tokens(found) * each


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
