"""Held-out loss and perplexity of several checkpoints of one model."""

from __future__ import annotations

from typing import Any

from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import shapes_of
from megatron_soaes.recipe.schema import EvaluateStage as EvaluateSettings
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.recipe.training_settings import Precision
from megatron_soaes.stages.base import Plan, Stage
from megatron_soaes.stages.datasets import (
    data_config,
    data_inputs,
    held_out_sets,
    reading_for,
)
from megatron_soaes.stages.locations import checkpoint_root


class EvaluateStage(Stage):
    """Measures each checkpoint on each set of `evaluation.perplexity`."""

    kind = "evaluate"

    def __init__(self, recipe: Recipe, settings: EvaluateSettings) -> None:
        super().__init__(recipe, settings.name)
        self.settings = settings

    def plan(self) -> Plan:
        sets = self.recipe.evaluation.perplexity
        checkpoints = {
            f"checkpoint/{name}": checkpoint_root(self.recipe, name, self.settings.model)
            for name in self.settings.checkpoints
        }
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs={**checkpoints, **data_inputs(self.recipe, sets)},
            outputs={},
            config={
                "checkpoints": self.settings.checkpoints,
                "dtype": self.settings.dtype,
                "sets": data_config(self.recipe, sets),
                "sequence_length": self.recipe.evaluation.sequence_length,
            },
            directory=self.directory,
            processes=graph.layout_of(self.recipe, self.settings).processes,
        )

    def run(self) -> dict[str, Any]:
        from megatron_soaes.accelerator.groups import first_rank_first
        from megatron_soaes.checkpoint.directory import best_iteration
        from megatron_soaes.training.engine import build_options, layout_groups, load_model
        from megatron_soaes.training.validation import validate

        recipe, stage = self.recipe, self.settings
        source = graph.model_of(recipe, stage)
        layout = graph.layout_of(recipe, stage)
        shape = shapes_of(recipe)[0][stage.model]
        reading = reading_for(recipe, source, shape, recipe.evaluation.sequence_length)
        with first_rank_first():
            sets = held_out_sets(reading, recipe.evaluation.perplexity, "refuse")
        options = build_options(shape, source, layout, Precision(dtype=stage.dtype))
        metrics = {}
        with layout_groups(layout):
            for name in stage.checkpoints:
                root = checkpoint_root(recipe, name, stage.model)
                iteration = best_iteration(root) if name.endswith(graph.BEST) else None
                chunks = load_model(shape, options, root, iteration)
                metrics[name] = validate(
                    chunks, shape.vocab_size, sets, recipe.evaluation.micro_batch_size, layout
                )
        return metrics
