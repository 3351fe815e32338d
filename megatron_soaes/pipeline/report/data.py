"""Everything the report says, read from what the stages of a run left."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from megatron_soaes.pipeline.manifest import read_manifest
from megatron_soaes.pipeline.report.corpus import Corpus, read_corpus
from megatron_soaes.pipeline.report.curves import Curve, read_curves
from megatron_soaes.pipeline.report.drafts import Acceptance, Speed, read_acceptance, read_speeds
from megatron_soaes.pipeline.report.measures import Evaluation, read_evaluations
from megatron_soaes.pipeline.report.stages import StageEntry, read_stages
from megatron_soaes.pipeline.status import State
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.registry import stages_of


@dataclass(frozen=True)
class Report:
    """A run at one moment."""

    name: str
    workdir: str
    written: str
    """When, in ISO 8601."""
    stages: list[StageEntry]
    curves: list[Curve]
    evaluations: list[Evaluation]
    acceptance: list[Acceptance]
    speeds: list[Speed]
    corpus: Corpus

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return all(stage.state is State.DONE for stage in self.stages)


def read_report(recipe: Recipe) -> Report:
    """Read a run as far as it is. Raises UserError for a damaged manifest or result."""
    found = {name: read_manifest(stage.directory) for name, stage in stages_of(recipe).items()}
    manifests = {name: manifest for name, manifest in found.items() if manifest is not None}
    return Report(
        name=recipe.name,
        workdir=str(recipe.workdir),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        stages=read_stages(recipe, manifests),
        curves=read_curves(recipe),
        evaluations=read_evaluations(recipe, manifests),
        acceptance=read_acceptance(recipe),
        speeds=read_speeds(recipe, manifests),
        corpus=read_corpus(recipe, manifests),
    )
