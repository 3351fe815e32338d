"""What one stage asks of the machine: the numbers that memory and time follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from megatron_soaes.recipe.graph import layout_of, model_of
from megatron_soaes.recipe.schema import (
    CaptureStage,
    DistillStage,
    ModelName,
    PreciseStage,
    Recipe,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import (
    Kernels,
    Layout,
    Optimizer,
    Overlap,
    Precision,
    Recompute,
)


@dataclass(frozen=True)
class Workload:
    """A model of one shape in one layout, trained (or only read) on batches of one size."""

    shape: ModelShape
    vocab_size: int
    """Rows of the embedding and of the output layer, padding included, all ranks together."""
    layout: Layout
    sequence_length: int
    micro_batch_size: int
    global_batch_size: int
    """Samples of one step of all replicas."""
    precision: Precision
    recompute: Recompute = field(default_factory=Recompute)
    overlap: Overlap = field(default_factory=Overlap)
    kernels: Kernels = field(default_factory=Kernels)
    optimizer: Optimizer | None = None
    """None: forward passes only, as in capture."""
    teacher: ModelShape | None = None
    """A second model that runs forward in the same layout and arithmetic, as in distillation."""

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch: its samples stand one after the other in one row."""
        return self.sequence_length * self.micro_batch_size

    @property
    def micro_batches(self) -> int:
        """Forward passes of one replica in a step."""
        return self.global_batch_size // (self.micro_batch_size * self.layout.data_parallel)


def workload_of(
    recipe: Recipe, stage: PreciseStage, shapes: Mapping[ModelName, ModelShape]
) -> Workload:
    """What a stage that trains or captures asks for; `shapes` holds those of its models."""
    layout = layout_of(recipe, stage)
    shape = shapes[stage.model]
    asked = partial(
        Workload,
        shape=shape,
        vocab_size=shape.padded_vocab_size(model_of(recipe, stage).vocab_size_multiple),
        layout=layout,
        sequence_length=stage.sequence_length,
        micro_batch_size=stage.micro_batch_size,
        precision=stage.precision,
    )
    if isinstance(stage, CaptureStage):
        return asked(global_batch_size=stage.micro_batch_size * layout.data_parallel)
    beside = isinstance(stage, DistillStage) and stage.teacher is not None
    return asked(
        global_batch_size=stage.global_batch_size,
        recompute=stage.recompute,
        overlap=stage.overlap,
        kernels=stage.kernels,
        optimizer=stage.optimizer,
        teacher=shapes["target"] if beside else None,
    )
