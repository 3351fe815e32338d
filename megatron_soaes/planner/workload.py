"""What one stage asks of the machine: the numbers that memory and time follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    reference: bool = False
    """A copy of the model that stays as it was runs forward, too, as selecting positions asks."""

    @property
    def read_only(self) -> list[Workload]:
        """The models that run forward beside this one, each as if it were alone."""
        shapes = [*([self.teacher] if self.teacher else []), *([self.shape] * self.reference)]
        alone = replace(self, teacher=None, reference=False, optimizer=None)
        return [replace(alone, shape=shape) for shape in shapes]

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
    distilled = stage if isinstance(stage, DistillStage) else None
    return asked(
        global_batch_size=stage.global_batch_size,
        recompute=stage.recompute,
        overlap=stage.overlap,
        kernels=stage.kernels,
        optimizer=stage.optimizer,
        teacher=shapes["target"] if distilled and distilled.teacher is not None else None,
        reference=distilled is not None and distilled.objective.selection is not None,
    )
