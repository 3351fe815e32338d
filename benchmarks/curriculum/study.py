"""Runs the study: corpus, base, tuning, then every seed with every arm; what is done is skipped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.curriculum.recipes import (
    CPT_VALIDATION,
    SFT_VALIDATION,
    Places,
    Recipe,
    Recipes,
    data_recipe,
    exported,
    write_recipe,
)
from benchmarks.curriculum.settings import TUNING_SEED, Settings
from data_prep.rehearsal.make import make
from megatron_soaes.errors import ExitCode
from megatron_soaes.pipeline.manifest import read_manifest

ROOT = Path(__file__).parents[2]
CORPUS_SEED = 0
REQUIRES = {
    "cpt": (),
    "replay": (),
    "curriculum": ("cpt",),
    "no-cpt": (),
    "replay-sft": ("replay",),
}
"""The arms, each with those whose model it starts from; the others start from the base."""
SFT_STAGES = ("progressive", "single", "stage2")


class Interrupted(Exception):
    """`soaes run` did not finish; its exit code is the argument."""


@dataclass(frozen=True)
class Rates:
    """The learning rates that the tuning seed chose."""

    cpt: float
    sft: Mapping[str, float]
    """By stage: `SFT_STAGES`."""


def with_requirements(arms: Sequence[str]) -> list[str]:
    """The arms and those they start from, in the order in which they run."""
    wanted = {name for arm in arms for name in (arm, *REQUIRES[arm])}
    return [arm for arm in REQUIRES if arm in wanted]


def run_study(
    places: Places, settings: Settings, seeds: Sequence[int], arms: Sequence[str]
) -> Rates:
    """Make or finish everything that is needed for these seeds and arms.

    Raises Interrupted when a run ends with another code than 0; the same call goes on from there.
    """
    make(places.corpus, CORPUS_SEED, settings.corpus)
    soaes_run(places.data, data_recipe(places))
    recipes = Recipes(places, settings)
    soaes_run(places.base, recipes.base())
    rates = tune(recipes)
    for seed in seeds:
        for arm in with_requirements(arms):
            soaes_run(places.arm(seed, arm), arm_recipe(recipes, seed, arm, rates))
    return rates


def arm_recipe(recipes: Recipes, seed: int, arm: str, rates: Rates) -> Recipe:
    """The recipe of one arm with one seed."""
    places = recipes.places
    sources = [exported(places.arm(seed, start)) for start in REQUIRES[arm]]
    source = sources[0] if sources else exported(places.base)
    match arm:
        case "cpt":
            return recipes.cpt(seed, rates.cpt)
        case "replay":
            return recipes.replay(seed, rates.cpt)
        case "curriculum":
            return recipes.curriculum(seed, source, rates.sft)
    return recipes.progressive(seed, source, rates.sft["progressive"])


def tune(recipes: Recipes) -> Rates:
    """Learning rates with the lowest validation loss on the tuning seed, which is not reported.

    For CPT the mean of domain and general text, for each SFT arm that of the expert questions. The
    exam is not looked at.
    """
    settings, places = recipes.settings, recipes.places
    cpt = {lr: places.tuning("cpt", lr) for lr in settings.cpt_lrs}
    for lr, run in cpt.items():
        soaes_run(run, without_evaluation(recipes.cpt(TUNING_SEED, lr)))
    cpt_lr = lowest_loss(cpt, "cpt", CPT_VALIDATION)
    source = exported(cpt[cpt_lr])
    sft = {lr: places.tuning("sft", lr) for lr in settings.sft_lrs}
    for lr, run in sft.items():
        recipe = recipes.curriculum(TUNING_SEED, source, dict.fromkeys(SFT_STAGES, lr))
        soaes_run(run, without_evaluation(recipe))
    return Rates(cpt_lr, {stage: lowest_loss(sft, stage, SFT_VALIDATION) for stage in SFT_STAGES})


def lowest_loss(runs: Mapping[float, Path], stage: str, sets: Sequence[str]) -> float:
    """The learning rate whose finished run has the lowest mean loss on these held-out sets."""

    def loss(lr: float) -> float:
        manifest = read_manifest(runs[lr] / stage)
        assert manifest is not None, "the run has finished"
        return fmean(manifest.metrics["validation"][name]["loss"] for name in sets)

    return min(runs, key=loss)


def without_evaluation(recipe: Recipe) -> Recipe:
    """The recipe without its `evaluate` stages."""
    kept = [stage for stage in recipe["stages"] if stage["kind"] != "evaluate"]
    return {**recipe, "stages": kept, "evaluation": {}}


def soaes_run(run: Path, recipe: Recipe) -> None:
    """`soaes run` on a recipe, whose file and results lie in the folder `run`."""
    file = write_recipe(run, recipe)
    print(f"\n== {file}", flush=True)
    command = [sys.executable, "-m", "megatron_soaes", "run", str(file)]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code != ExitCode.OK:
        raise Interrupted(code)
