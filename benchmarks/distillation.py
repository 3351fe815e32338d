"""What a draft gains from its target, and which share of it is due to the text alone.

    python -m benchmarks.distillation [--recipe examples/rehearsal/recipe.yaml] [--record]

Takes a finished run of the rehearsal (`make demo`) and adds distillations to it, all from the draft
that has been through SFT, for the same steps: cross entropy on the original text, cross entropy on
what the target wrote, and each divergence on what the target wrote. All are judged by the target's
probabilities on answers that no arm trained on. What is there already is not trained again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu.results import append
from megatron_soaes.errors import ExitCode
from megatron_soaes.pipeline.manifest import read_manifest
from megatron_soaes.pipeline.run import run
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import DistillStage, Recipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
ORIGINAL = "original"
"""Blend and capture of the text that the prompts come from."""
DIVERGENCES = (
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "total_variation",
    "negative_log_acceptance",
    "acceptance_hybrid",
)
Table = Mapping[str, Mapping[str, Any]]


def with_arms(recipe: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The recipe's own stages up to its distillation, then one of as many steps for each arm."""
    stages = {stage["name"]: stage for stage in recipe["stages"]}
    distil, capture = stages["distil"], stages["capture"]
    before = list(stages.values())[: list(stages).index("distil")]
    start = [
        stage["name"]
        for stage in before
        if stage.get("model") == "draft" and "sft" in stage["kind"]
    ]
    common = {**distil, "after": start[-1], "epochs": None, "steps": steps}
    original = {**capture, "name": f"capture-{ORIGINAL}", "blend": ORIGINAL}
    arms = [
        {**common, "name": "text-original", "captured": original["name"]},
        {**common, "name": "text-own-words"},
    ]
    for arm in arms:
        arm["objective"] = {"cross_entropy": 1.0}
    arms += [{**common, "name": name, "objective": {"divergence": name}} for name in DIVERGENCES]
    prompts = stages["respond"]["prompts"]
    chats = [name for name in prompts if "conversations" in recipe["data"]["datasets"][name]]
    blends = {**recipe["data"]["blends"], ORIGINAL: {"weights": dict.fromkeys(chats, 1)}}
    data = {**recipe["data"], "blends": blends}
    kept = {key: value for key, value in recipe.items() if key != "evaluation"}
    before = [stage for stage in before if stage["kind"] != "evaluate"]
    return {**kept, "data": data, "stages": [*before, original, *arms]}


def table(recipe: Recipe) -> str:
    """Acceptance of every arm on the held-out answers."""
    arms = [stage for stage in recipe.stages if isinstance(stage, DistillStage)]
    rows = [
        "| draft | steps | alpha | greedy match | tokens a pass, 5 drafted |",
        "|---|---|---|---|---|",
    ]
    for number, stage in enumerate(arms):
        manifest = read_manifest(recipe.workdir / stage.name)
        assert manifest is not None, "the run has finished"
        steps, acceptance = manifest.metrics["iteration"], manifest.metrics["acceptance"]
        if number == 0:
            rows.append(_row("not distilled", 0, acceptance["before"]))
        rows.append(_row(stage.name, steps, acceptance["after"]))
    return "\n".join(rows)


def _row(name: str, steps: int, sets: Table) -> str:
    (figures,) = [found for label, found in sets.items() if "/" not in label]
    alpha, match = figures["alpha"], figures["greedy_match"]
    return f"| {name} | {steps} | {alpha:.3f} | {match:.3f} | {figures['tokens_per_pass'][4]:.2f} |"


def main() -> int:
    """Run the arms that are missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "examples/rehearsal/recipe.yaml")
    parser.add_argument("--record", action="store_true", help=f"add the table to {RESULTS.name}")
    options = parser.parse_args()
    done = read_manifest(load_recipe(options.recipe).workdir / "distil")
    if done is None:
        parser.error(f"{options.recipe} has not run yet: run it first (`make demo`)")
    content = yaml.safe_load(options.recipe.read_text(encoding="utf-8"))
    content = with_arms(content, done.metrics["iteration"])
    # Beside the recipe, so that its relative paths mean the same.
    derived = options.recipe.with_name("distillation-arms.yaml")
    derived.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    try:
        recipe = load_recipe(derived)
        code = run(recipe)
    finally:
        derived.unlink()
    if code != ExitCode.OK:
        return code
    text = table(recipe)
    print(f"\n{text}")
    if options.record:
        append(RESULTS, f"## Distillation of the rehearsal's draft\n\n{text}\n")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
