"""A finished stage is held to the gates of its recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.manifest import Manifest
from megatron_soaes.recipe.gates import Gate
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.evaluate import COMPARISON_FILE

RETAINED = "retained"
"""Of an evaluate stage: what its last checkpoint keeps of the first one's general ability."""
ACCEPTANCE = "acceptance"
"""Of a distill stage: the least acceptance rate over its held-out sets."""
GENERAL_TASKS = ("choices/", "texts/")
"""Inputs of an evaluate stage that measure general ability; its questions are of the domain."""


@dataclass(frozen=True)
class Measured:
    """What the gates of a finished stage speak about."""

    metrics: dict[str, float]
    """By dotted name, and by the short name where the kind of stage has one."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Short names that have no value, with the reason."""


def hold_to_gates(recipe: Recipe, manifest: Manifest, directory: Path) -> None:
    """Raise UserError, with the numbers, when a gate of the stage in `directory` does not hold."""
    gates = {stage.name: stage.gates for stage in recipe.stages}.get(manifest.stage, [])
    found = measured(manifest) if gates else Measured({})
    for gate in map(Gate.parse, gates):
        where, stopped = f"stage {manifest.stage}, gate '{gate}'", "The run stops here"
        if gate.metric in found.unknown:
            raise UserError(
                where, f"{gate.metric} is not known: {found.unknown[gate.metric]}",
                f"a number {gate.operator} {gate.bound:g}",
                f"{stopped}, because nothing shows that the gate holds: measure what is lacking, "
                f"or remove the gate. The results are in {directory}.",
            )  # fmt: skip
        if not gate.holds(found.metrics):
            raise UserError(
                where,
                f"{gate.metric} = {found.metrics[gate.metric]:.6g}",
                f"{gate.operator} {gate.bound:g}",
                f"{stopped}; its results are in {directory}.",
            )


def measured(manifest: Manifest) -> Measured:
    """The numbers of a finished stage by the names that its gates may use."""
    short = Measured({})
    if manifest.kind == "evaluate":
        short = _retained(manifest)
    elif manifest.kind == "distill":
        short = _acceptance(manifest)
    return Measured(flat_metrics(manifest.metrics) | short.metrics, short.unknown)


def flat_metrics(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics under dotted names, numbers only."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flat_metrics(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def _retained(manifest: Manifest) -> Measured:
    """`retained` and, for every checkpoint but the first, `NAME.retained`."""
    from megatron_soaes.evaluation.retained import retained

    comparison = manifest.outputs.get(COMPARISON_FILE)
    if comparison is None:
        why = "only a stage with two checkpoints or more, and with tasks, compares them"
        return Measured({}, {RETAINED: why})
    general = {
        name.removeprefix(kind)
        for name in manifest.inputs
        for kind in GENERAL_TASKS
        if name.startswith(kind)
    }
    found = retained(json.loads(Path(comparison.path).read_text(encoding="utf-8")), general)
    named = {f"{checkpoint}.{RETAINED}": one for checkpoint, one in found.items()}
    named[RETAINED] = found[manifest.config["checkpoints"][-1]]
    return Measured(
        {name: one.value for name, one in named.items() if one.value is not None},
        {name: one.why for name, one in named.items() if one.value is None},
    )


def _acceptance(manifest: Manifest) -> Measured:
    after = manifest.metrics.get("acceptance", {}).get("after", {})
    if not after:
        return Measured({}, {ACCEPTANCE: "the stage has no held-out set (validation.sets)"})
    return Measured({ACCEPTANCE: min(float(figures["alpha"]) for figures in after.values())})
