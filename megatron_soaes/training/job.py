"""What a training stage is given: everything it needs, resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_soaes.data.blend import Mixture
from megatron_soaes.data.sample import SampleSource
from megatron_soaes.models.build import BuildOptions
from megatron_soaes.recipe.fp8 import Filling, filling_of
from megatron_soaes.recipe.schema import ModelSource, TrainingStage
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.engine import build_options
from megatron_soaes.training.forecast import Forecast
from megatron_soaes.training.teaching import Teaching


@dataclass(frozen=True)
class TrainingJob:
    """A training stage with everything it needs, resolved."""

    stage: TrainingStage
    steps: int
    """Optimizer steps in all."""
    layout: Layout
    shape: ModelShape
    source: ModelSource
    seed: int
    tokenizer: str
    """SHA-256 of the tokenizer.json behind the blend."""
    start: Path
    """Checkpoint root the weights come from when nothing was saved yet: its newest iteration."""
    out: Path
    """Folder of the stage: checkpoints/, metrics.jsonl, tensorboard/, traces/, non_finite/."""
    mixture: Mixture
    validation: Mapping[str, SampleSource]
    teaching: Teaching | None = None
    """What makes it a distillation."""
    start_at_best: bool = False
    """Whether to start from the iteration of `start` that is marked as the best instead."""
    peak_flops: float | None = None
    """Datasheet FLOP/s of one device, for MFU; measured when None."""
    forecast: Forecast | None = None
    """What the planner says of the stage, to be compared with what it takes."""
    written_by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        """Where this stage saves."""
        return self.out / "checkpoints"

    @property
    def filling(self) -> Filling:
        """What documents are filled up to."""
        return filling_of(self.layout, self.stage.precision.fp8)

    @property
    def build_options(self) -> BuildOptions:
        """How the model is built."""
        stage = self.stage
        return build_options(
            self.shape,
            self.source,
            self.layout,
            stage.precision,
            recompute=stage.recompute,
            kernels=stage.kernels,
            overlap=stage.overlap,
        )
