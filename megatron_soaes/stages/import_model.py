"""One model, from an HF directory or Megatron-LM, -> checkpoint that every layout loads."""

from __future__ import annotations

import shutil
from typing import Any

from megatron_soaes.recipe.schema import ModelName, ModelSource, Recipe
from megatron_soaes.stages.base import Plan, Stage


class ImportStage(Stage):
    """Runs `soaes import`, parity gate included."""

    kind = "import"

    def __init__(self, recipe: Recipe, name: str, model: ModelName) -> None:
        super().__init__(recipe, name)
        self.model = model

    def plan(self) -> Plan:
        source = self._source()
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs={"hf": source.source}
            | ({"weights": source.weights} if source.weights else {})
            | ({"config": source.config} if source.weights and source.config else {}),
            outputs={"checkpoints": self.directory / "checkpoints"},
            config={},
            directory=self.directory,
        )

    def run(self) -> dict[str, Any]:
        from megatron_soaes.checkpoint.import_hf import import_hf
        from megatron_soaes.checkpoint.import_megatron import import_megatron

        source = self._source()
        out = self.directory / "checkpoints"
        shutil.rmtree(out, ignore_errors=True)
        if source.weights:
            report = import_megatron(source.weights, source.source, out, config=source.config)
        else:
            report = import_hf(source.source, out)
        assert report.parity is not None
        print(f"  {report.parity}")
        return {"tensors": report.tensors, "logit_error": report.parity.max_difference}

    def _source(self) -> ModelSource:
        source = self.recipe.models.get(self.model)
        assert source is not None
        return source
