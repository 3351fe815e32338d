"""A table of what a run made, for the end of a run."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from megatron_soaes.pipeline.manifest import Manifest, read_manifest
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.registry import stages_of


def print_summary(recipe: Recipe, console: Console) -> None:
    """Every finished stage with its time and results, then each comparison of checkpoints."""
    manifests = [
        manifest
        for stage in stages_of(recipe).values()
        if (manifest := read_manifest(stage.directory)) is not None
    ]
    table = Table("stage", "kind", "processes", "result", title=f"run {recipe.name}")
    for manifest in manifests:
        where = ", ".join(output.path for output in manifest.outputs.values()) or "see below"
        table.add_row(manifest.stage, manifest.kind, str(manifest.processes), where)
    console.print(table)
    for manifest in manifests:
        if manifest.kind == "evaluate":
            console.print(comparison(manifest))


def comparison(manifest: Manifest) -> Table:
    """Perplexity by checkpoint and held-out set, with the change against the first checkpoint."""
    checkpoints = list(manifest.config["checkpoints"])
    sets = list(manifest.metrics[checkpoints[0]])
    table = Table("checkpoint", *sets, title=f"{manifest.stage}: perplexity (lower is better)")
    base = manifest.metrics[checkpoints[0]]
    for name in checkpoints:
        cells = []
        for held_out in sets:
            figure = manifest.metrics[name][held_out]["perplexity"]
            change = figure / base[held_out]["perplexity"]
            cells.append(
                f"{figure:.2f}" if name == checkpoints[0] else f"{figure:.2f} ({change:.2f}x)"
            )
        table.add_row(name, *cells)
    return table
