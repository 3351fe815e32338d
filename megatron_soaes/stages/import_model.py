"""HF directory of one model -> checkpoint that every layout loads."""

from __future__ import annotations

import shutil
from typing import Any

from megatron_soaes.recipe.schema import ModelName, Recipe
from megatron_soaes.stages.base import Plan, Stage


class ImportStage(Stage):
    """Runs `soaes import`, parity gate included."""

    kind = "import"

    def __init__(self, recipe: Recipe, name: str, model: ModelName) -> None:
        super().__init__(recipe, name)
        self.model = model

    def plan(self) -> Plan:
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs={"hf": self._source().source},
            outputs={"checkpoints": self.directory / "checkpoints"},
            config={},
            directory=self.directory,
        )

    def run(self) -> dict[str, Any]:
        from megatron_soaes.checkpoint.import_hf import import_hf

        out = self.directory / "checkpoints"
        shutil.rmtree(out, ignore_errors=True)
        report = import_hf(self._source().source, out)
        assert report.parity is not None
        print(f"  {report.parity}")
        return {"tensors": report.tensors, "logit_error": report.parity.max_difference}

    def _source(self) -> Any:
        source = self.recipe.models.get(self.model)
        assert source is not None
        return source
