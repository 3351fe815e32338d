"""The stages of a run: where each stands, what it reads, its gates and its lineage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.dependencies import makers_of
from megatron_soaes.pipeline.gates import measured
from megatron_soaes.pipeline.manifest import Manifest
from megatron_soaes.pipeline.status import Progress, StageStatus, State, read_status
from megatron_soaes.recipe.gates import Gate
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import Plan, Stage
from megatron_soaes.stages.registry import stages_of


@dataclass(frozen=True)
class GateEntry:
    """A condition on the stage's metrics."""

    condition: str
    measured: float | None
    """None until the stage is done, and where it has no such metric."""
    holds: bool | None
    """None until the stage is done."""


@dataclass(frozen=True)
class FileEntry:
    """A file or folder that a stage read or made."""

    name: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Lineage:
    """What a finished stage was made from, and by what."""

    inputs: list[FileEntry]
    outputs: list[FileEntry]
    code: dict[str, str]
    """Version of this program and the hash of its source files."""
    versions: dict[str, str]
    device: str


@dataclass(frozen=True)
class StageEntry:
    """One stage of the run."""

    name: str
    kind: str
    state: State
    why: str
    """What changed or is wrong, else empty."""
    seconds: float | None
    processes: int
    """As planned, and of a stage that is done as it was."""
    finished: str | None
    """When, in ISO 8601."""
    progress: Progress | None
    reads: list[str]
    """The stages that make what it reads."""
    gates: list[GateEntry]
    lineage: Lineage | None
    """None for a stage that has not finished."""
    directory: str


def read_stages(recipe: Recipe, manifests: Mapping[str, Manifest]) -> list[StageEntry]:
    """Every stage in its order. Raises UserError for a damaged manifest."""
    stages = stages_of(recipe)
    plans: dict[str, Plan] = {}
    entries = []
    for status in read_status(recipe):
        plan = _plan(stages[status.name])
        entries.append(
            _entry(recipe, status, plan, makers_of(plan, plans), manifests.get(status.name))
        )
        plans[status.name] = plan
    return entries


def _plan(stage: Stage) -> Plan:
    """A stage that cannot be planned, since its files are missing, has no known inputs."""
    try:
        return stage.plan()
    except UserError:
        return Plan(stage.name, stage.kind, {}, {}, {}, stage.directory)


def _entry(
    recipe: Recipe, status: StageStatus, plan: Plan, makers: list[str], manifest: Manifest | None
) -> StageEntry:
    gates = {stage.name: stage.gates for stage in recipe.stages}.get(status.name, [])
    return StageEntry(
        name=status.name,
        kind=plan.kind,
        state=status.state,
        why=status.why,
        seconds=status.seconds,
        processes=manifest.processes if manifest else plan.processes,
        finished=manifest.finished if manifest else None,
        progress=status.progress,
        reads=makers,
        gates=[_gate(Gate.parse(gate), manifest) for gate in gates],
        lineage=_lineage(manifest) if manifest else None,
        directory=str(status.directory),
    )


def _gate(gate: Gate, manifest: Manifest | None) -> GateEntry:
    if manifest is None:
        return GateEntry(str(gate), None, None)
    metrics = measured(manifest).metrics
    value = metrics.get(gate.metric)
    return GateEntry(str(gate), value, value is not None and gate.holds(metrics))


def _lineage(manifest: Manifest) -> Lineage:
    return Lineage(
        inputs=[FileEntry(n, one["path"], one["hash"]) for n, one in manifest.inputs.items()],
        outputs=[FileEntry(n, one.path, one.hash) for n, one in manifest.outputs.items()],
        code=manifest.code,
        versions=manifest.versions,
        device=manifest.device,
    )
