"""A trained checkpoint -> an HF directory, parity gate included."""

from __future__ import annotations

import json
import shutil
from typing import Any

from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import shapes_of
from megatron_soaes.recipe.schema import ExportStage as ExportSettings
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import MANIFEST_FILE, Plan, Stage
from megatron_soaes.stages.locations import checkpoint_root, exported_hf


class ExportStage(Stage):
    """Runs `soaes export hf` on the newest checkpoint of another stage."""

    kind = "export"

    def __init__(self, recipe: Recipe, settings: ExportSettings) -> None:
        super().__init__(recipe, settings.name)
        self.settings = settings

    def plan(self) -> Plan:
        start = graph.start_of(self.recipe, self.settings)
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs={"checkpoint": checkpoint_root(self.recipe, start, self.settings.model)},
            outputs={"hf": exported_hf(self.recipe, self.name)},
            config={
                "format": self.settings.format,
                "after": start,
                "shard_bytes": self.recipe.export.shard_bytes,
            },
            directory=self.directory,
        )

    def run(self) -> dict[str, Any]:
        from megatron_soaes.checkpoint.directory import best_iteration
        from megatron_soaes.checkpoint.export_hf import export_hf

        plan = self.plan()
        shutil.rmtree(plan.outputs["hf"], ignore_errors=True)
        root, start = plan.inputs["checkpoint"], graph.start_of(self.recipe, self.settings)
        report = export_hf(
            root,
            plan.outputs["hf"],
            iteration=best_iteration(root) if start.endswith(graph.BEST) else None,
            shard_bytes=self.recipe.export.shard_bytes,
            readme=self._card(start),
        )
        assert report.parity is not None
        print(f"  {report.parity}")
        return {
            "tensors": report.tensors,
            "bytes": report.bytes,
            "iteration": report.iteration,
            "logit_error": report.parity.max_difference,
        }

    def _card(self, checkpoint: str) -> str:
        """What the model card says, from what the finished stages of the run left."""
        from megatron_soaes.export.model_card import model_card

        recipe, model = self.recipe, self.settings.model
        shape = shapes_of(recipe)[0][model]
        found = [recipe.workdir / node / MANIFEST_FILE for node in graph.nodes(recipe)]
        manifests = [
            json.loads(file.read_text(encoding="utf-8")) for file in found if file.exists()
        ]
        return model_card(f"{recipe.name}, {model}", shape, manifests, checkpoint)
