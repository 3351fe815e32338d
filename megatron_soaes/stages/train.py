"""What all training stages do: CPT, SFT stages and their control, distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import shapes_of
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.schema import AnyTrainingStage, DistillStage, Recipe
from megatron_soaes.stages.base import Plan, Stage, Stopped
from megatron_soaes.stages.datasets import (
    data_config,
    data_inputs,
    held_out_sets,
    reading_for,
)
from megatron_soaes.stages.forecasting import forecast_of
from megatron_soaes.stages.locations import checkpoint_root
from megatron_soaes.stages.mixtures import (
    mixture_config,
    packing_reports,
    too_long_of,
    training_mixture,
)
from megatron_soaes.stages.teaching import check_tokenizers, teaching_inputs, teaching_of

if TYPE_CHECKING:
    from megatron_soaes.training.job import TrainingJob

WITHOUT_EFFECT_ON_WEIGHTS = {
    "layout", "micro_batch_size", "overlap", "recompute", "kernels", "validation", "checkpoints",
    "profile", "log_every", "gates", "allow_changes", "hang_timeout_s",
}  # fmt: skip
"""Settings that may change without making a finished stage stale."""


class TrainStage(Stage):
    """Trains one model on one mixture; the kinds differ in where its samples come from."""

    def __init__(self, recipe: Recipe, settings: AnyTrainingStage) -> None:
        super().__init__(recipe, settings.name)
        self.kind = settings.kind
        self.settings = settings

    def plan(self) -> Plan:
        stage = self.settings
        trained = graph.datasets_of(self.recipe, stage)
        start = graph.start_of(self.recipe, stage)
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs={
                "start": checkpoint_root(self.recipe, start, stage.model),
                **data_inputs(self.recipe, [*trained, *stage.validation.sets]),
                **(teaching_inputs(self.recipe, stage) if isinstance(stage, DistillStage) else {}),
            },
            outputs={"checkpoints": self.directory / "checkpoints"},
            config={
                **stage.model_dump(mode="json", exclude=WITHOUT_EFFECT_ON_WEIGHTS),
                "after": start,
                "best": stage.validation.best,
                "seed": self.recipe.seed,
                "mixture": mixture_config(self.recipe, stage),
                "datasets": data_config(self.recipe, trained),
            },
            directory=self.directory,
            processes=graph.layout_of(self.recipe, stage).processes,
            resumable=True,
        )

    def run(self) -> dict[str, Any]:
        from megatron_soaes.accelerator.groups import world_rank
        from megatron_soaes.training.engine import layout_groups
        from megatron_soaes.training.trainer import train

        with layout_groups(graph.layout_of(self.recipe, self.settings)):
            job, packing = self._job()
            if world_rank() == 0:
                for name, report in packing.items():
                    print(f"  {name}: {_packed(report)}", flush=True)
            result = train(job)
        if not result.completed:
            raise Stopped
        return {**result.metrics, "packing": packing}

    def _job(self) -> tuple[TrainingJob, dict[str, dict[str, Any]]]:
        """Everything the stage needs, and what became of the conversations it packs."""
        from megatron_soaes.accelerator.groups import first_rank_first
        from megatron_soaes.accelerator.machine import read_machine
        from megatron_soaes.training.job import TrainingJob

        stage, recipe = self.settings, self.recipe
        source = graph.model_of(recipe, stage)
        if isinstance(stage, DistillStage):
            check_tokenizers(recipe, stage)
        layout = graph.layout_of(recipe, stage)
        shapes, _ = shapes_of(recipe)
        shape = shapes[stage.model]
        reading = reading_for(recipe, source, shape, stage.sequence_length)
        # The first rank writes the indexes that the others then map.
        with first_rank_first():
            mixture, steps = training_mixture(reading, stage)
            sets = held_out_sets(reading, stage.validation.sets, too_long_of(recipe, stage))
            packing = packing_reports(reading, stage)
        teaching = None
        if isinstance(stage, DistillStage):
            teaching = teaching_of(reading, stage, shapes, mixture, sets)
        gpu = GPUS.get(recipe.cluster.gpu) if recipe.cluster else None
        rate = None
        if gpu is not None:
            rate = gpu.fp8_tflops if stage.precision.fp8 else gpu.bf16_tflops
        start = graph.start_of(recipe, stage)
        job = TrainingJob(
            stage=stage,
            steps=steps,
            layout=layout,
            shape=shape,
            source=source,
            seed=recipe.seed,
            tokenizer=reading.tokenizer.sha256,
            start=checkpoint_root(recipe, start, stage.model),
            start_at_best=start.endswith(graph.BEST),
            out=self.directory,
            mixture=mixture,
            validation=sets,
            teaching=teaching,
            peak_flops=rate * 1e12 if rate else None,
            forecast=forecast_of(recipe, stage, shapes),
            written_by={
                "layout": layout.model_dump(),
                "versions": dict(read_machine().versions),
            },
        )
        return job, packing


def _packed(report: dict[str, Any]) -> str:
    return (
        f"{report['conversations']:,} conversations in {report['packs']:,} packs, "
        f"{report['efficiency']:.1%} full; {report['truncated']} truncated, "
        f"{report['dropped']} dropped"
    )
