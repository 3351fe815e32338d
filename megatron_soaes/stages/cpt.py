"""Continual pre-training: whole documents, a blend with replay, several validation sets."""

from __future__ import annotations

from typing import Any

from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import shapes_of
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.schema import CPTStage as CPTSettings
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import Plan, Stage, Stopped
from megatron_soaes.stages.datasets import (
    data_config,
    data_inputs,
    held_out_windows,
    training_blend,
    window_settings,
)
from megatron_soaes.stages.locations import checkpoint_root

WITHOUT_EFFECT_ON_WEIGHTS = {
    "layout", "micro_batch_size", "overlap", "recompute", "validation", "checkpoints", "profile",
    "log_every", "gates", "allow_changes", "hang_timeout_s",
}  # fmt: skip
"""Settings that may change without making a finished stage stale."""


class CPTStage(Stage):
    """Trains one model on one blend."""

    kind = "cpt"

    def __init__(self, recipe: Recipe, settings: CPTSettings) -> None:
        super().__init__(recipe, settings.name)
        self.settings = settings

    def plan(self) -> Plan:
        stage = self.settings
        trained = list(self.recipe.data.blends[stage.blend].shares())
        start = graph.start_of(self.recipe, stage)
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs={
                "start": checkpoint_root(self.recipe, start, stage.model),
                **data_inputs(self.recipe, [*trained, *stage.validation.sets]),
            },
            outputs={"checkpoints": self.directory / "checkpoints"},
            config={
                **stage.model_dump(mode="json", exclude=WITHOUT_EFFECT_ON_WEIGHTS),
                "seed": self.recipe.seed,
                "shares": self.recipe.data.blends[stage.blend].shares(),
                "datasets": data_config(self.recipe, trained),
            },
            directory=self.directory,
            processes=graph.layout_of(self.recipe, stage).processes,
            resumable=True,
        )

    def run(self) -> dict[str, Any]:
        from megatron_soaes.accelerator.groups import model_parallel
        from megatron_soaes.training.trainer import train

        layout = graph.layout_of(self.recipe, self.settings)
        with model_parallel(
            layout.tensor_parallel,
            layout.pipeline_parallel,
            layout.virtual_pipeline,
            layout.context_parallel,
        ):
            result = train(self._job())
        if not result.completed:
            raise Stopped
        return result.metrics

    def _job(self) -> Any:
        from megatron_soaes.accelerator.groups import first_rank_first
        from megatron_soaes.accelerator.machine import read_machine
        from megatron_soaes.training.trainer import TrainingJob

        stage, recipe = self.settings, self.recipe
        source = graph.model_of(recipe, stage)
        layout = graph.layout_of(recipe, stage)
        shape = shapes_of(recipe)[0][stage.model]
        settings = window_settings(recipe, source, stage.sequence_length, shape.vocab_size)
        # The first rank writes the shuffled indexes that the others then map.
        with first_rank_first():
            blend = training_blend(recipe, stage, settings)
            validation = held_out_windows(recipe, stage.validation.sets, settings)
        gpu = GPUS.get(recipe.cluster.gpu) if recipe.cluster else None
        rate = None
        if gpu is not None:
            rate = gpu.fp8_tflops if stage.precision.fp8 else gpu.bf16_tflops
        return TrainingJob(
            stage=stage,
            layout=layout,
            shape=shape,
            source=source,
            seed=recipe.seed,
            tokenizer=settings.tokenizer.sha256,
            start=checkpoint_root(recipe, graph.start_of(recipe, stage), stage.model),
            out=self.directory,
            blend=blend,
            validation=validation,
            peak_flops=rate * 1e12 if rate else None,
            written_by={
                "layout": layout.model_dump(),
                "versions": dict(read_machine().versions),
            },
        )
