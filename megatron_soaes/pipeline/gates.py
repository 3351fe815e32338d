"""A finished stage is held to the gates of its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.manifest import Manifest
from megatron_soaes.recipe.gates import Gate
from megatron_soaes.recipe.schema import Recipe


def hold_to_gates(recipe: Recipe, manifest: Manifest, directory: Path) -> None:
    """Raise UserError, with the numbers, when a gate of the stage in `directory` does not hold."""
    metrics = flat_metrics(manifest.metrics)
    gates = {stage.name: stage.gates for stage in recipe.stages}.get(manifest.stage, [])
    for gate in map(Gate.parse, gates):
        if not gate.holds(metrics):
            raise UserError(
                f"stage {manifest.stage}, gate '{gate}'",
                f"{gate.metric} = {metrics[gate.metric]:.6g}",
                f"{gate.operator} {gate.bound:g}",
                f"The run stops here; its results are in {directory}.",
            )


def flat_metrics(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics under dotted names, numbers only: what gates speak about."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flat_metrics(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = float(value)
    return flat
