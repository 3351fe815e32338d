"""A table of what a run made, for the end of a run."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_soaes.pipeline.manifest import Manifest, read_manifest
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.evaluate import REPORT_FILE, SUMMARY_FILE
from megatron_soaes.stages.registry import stages_of


def print_summary(recipe: Recipe, console: Console) -> None:
    """Every finished stage with its time and results, then each comparison of checkpoints."""
    manifests = [
        manifest
        for stage in stages_of(recipe).values()
        if (manifest := read_manifest(stage.directory)) is not None
    ]
    table = Table("stage", "processes", "seconds", title=f"{recipe.name}: what was made")
    table.add_column("result", overflow="fold")
    for manifest in manifests:
        places = {_place(output.path, recipe.workdir) for output in manifest.outputs.values()}
        where = "\n".join(sorted(places)) or f"{manifest.stage}/manifest.json"
        table.add_row(manifest.stage, str(manifest.processes), f"{_seconds(manifest):.0f}", where)
    console.print(table)
    for manifest in manifests:
        if manifest.kind == "evaluate":
            _print_evaluation(manifest, console)


def _print_evaluation(manifest: Manifest, console: Console) -> None:
    """Held-out perplexity, then the stage's own short account of its tasks."""
    first = manifest.metrics[manifest.config["checkpoints"][0]]
    sets = [name for name, figures in first.items() if "perplexity" in figures]
    if sets:
        console.print(comparison(manifest, sets))
    short = manifest.outputs.get(SUMMARY_FILE)
    if short is not None:
        text = Path(short.path).read_text(encoding="utf-8")
        console.print(f"{manifest.stage}:\n{text}", markup=False, soft_wrap=True)
        report = manifest.outputs[REPORT_FILE].path
        console.print(f"All measures, with intervals: {report}\n", markup=False, soft_wrap=True)


def comparison(manifest: Manifest, sets: list[str]) -> Table:
    """Held-out loss and perplexity by checkpoint and set."""
    checkpoints = list(manifest.config["checkpoints"])
    title = f"{manifest.stage}: held-out perplexity (loss)"
    table = Table("checkpoint", *sets, title=title)
    for name in checkpoints:
        figures = [manifest.metrics[name][held_out] for held_out in sets]
        table.add_row(name, *(f"{f['perplexity']:.4g} ({f['loss']:.3f})" for f in figures))
    return table


def _place(path: str, workdir: Path) -> str:
    """A result below the run's folder, the two files of a dataset as one."""
    relative = str(Path(path).relative_to(workdir))
    return relative.removesuffix(".bin").removesuffix(".idx")


def _seconds(manifest: Manifest) -> float:
    started, finished = map(datetime.fromisoformat, (manifest.started, manifest.finished))
    return (finished - started).total_seconds()
