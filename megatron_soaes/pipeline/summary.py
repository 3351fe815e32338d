"""A table of what a run made, for the end of a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from megatron_soaes.pipeline.manifest import Manifest, read_manifest
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.evaluate import REPORT_FILE, SUMMARY_FILE
from megatron_soaes.stages.registry import stages_of


def print_summary(recipe: Recipe, console: Console) -> None:
    """Every finished stage with its time and results, then what was measured, and what to try."""
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
        table.add_row(manifest.stage, str(manifest.processes), f"{manifest.seconds:.0f}", where)
    console.print(table)
    for manifest in manifests:
        if manifest.kind == "evaluate":
            _print_evaluation(manifest, console)
        elif manifest.kind == "distill" and manifest.metrics.get("acceptance"):
            console.print(acceptance(manifest))
        elif manifest.kind == "speculate":
            console.print(speculation(manifest))
    pairs = [manifest for manifest in manifests if manifest.kind == "speculate"]
    if pairs:
        console.print(invitation(pairs[-1]), markup=False, soft_wrap=True)


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


def acceptance(manifest: Manifest) -> Table:
    """How far the draft agrees with its target by held-out set, before and after distillation.

    Tokens a pass and the ideal speedup are those of the draft length that is best afterwards.
    """
    before, after = (manifest.metrics["acceptance"][when] for when in ("before", "after"))
    table = Table(
        Column("set", no_wrap=True),
        "alpha", "greedy match", "draft length", "tokens a pass", "ideal speedup",
        title=f"{manifest.stage}: acceptance by the target, before -> after",
    )  # fmt: skip
    for name, now in after.items():
        speedups = now["ideal_speedup"]
        place = max(range(len(speedups)), key=speedups.__getitem__)
        both = before[name], now
        table.add_row(
            name,
            _change([one["alpha"] for one in both], 3),
            _change([one.get("greedy_match") for one in both], 3),
            str(place + 1),
            _change([one["tokens_per_pass"][place] for one in both], 2),
            _change([one["ideal_speedup"][place] for one in both], 2),
        )
    return table


def _change(figures: Sequence[float | None], digits: int) -> str:
    """Before -> after; a sampled store says nothing about the most likely token."""
    return " -> ".join("-" if one is None else f"{one:.{digits}f}" for one in figures)


def speculation(manifest: Manifest) -> Table:
    """Plain against speculative decoding in each mode, at the fastest draft length."""
    table = Table(
        "mode", "draft length", "plain, ms a token", "with draft", "speedup (95 %)", "same text",
        title=f"{manifest.stage}: speculative decoding",
    )  # fmt: skip
    for mode, figures in manifest.metrics.items():
        table.add_row(
            mode,
            f"{figures['draft_length']}",
            f"{1000 * figures['plain_seconds_per_token']:.2f}",
            f"{1000 * figures['seconds_per_token']:.2f}",
            f"{figures['speedup']:.2f} "
            f"({figures['speedup_low']:.2f} - {figures['speedup_high']:.2f})",
            f"{figures['identical_prompts']} of {figures['prompts']}",
        )
    return table


def invitation(manifest: Manifest) -> str:
    """The command to talk to a measured pair, and a question for it, where its prompts hold one."""
    target, draft, prompts = (
        manifest.inputs[name]["path"] for name in ("target", "draft", "prompts")
    )
    command = f"Try it: {shlex.join(['soaes', 'chat', target, '--draft', draft])}"
    question = first_question(Path(prompts))
    return command if question is None else f"{command}   and ask: {question}"


def first_question(prompts: Path) -> str | None:
    """The first conversation of a .jsonl that is a single question on one line."""
    if prompts.suffix != ".jsonl":
        return None
    for line in filter(str.strip, prompts.read_text(encoding="utf-8").splitlines()):
        turns: list[Mapping[str, Any]] = json.loads(line).get("messages", [])
        if len(turns) == 1 and "\n" not in turns[0]["content"]:
            return str(turns[0]["content"])
    return None


def _place(path: str, workdir: Path) -> str:
    """A result below the run's folder, the two files of a dataset as one."""
    relative = str(Path(path).relative_to(workdir))
    return relative.removesuffix(".bin").removesuffix(".idx")
