"""`soaes plan`: which cluster is meant, and what is printed of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from megatron_soaes.errors import UserError
from megatron_soaes.planner.plan import DISK_GB_S, plan_recipe, problems
from megatron_soaes.planner.search import search_layouts
from megatron_soaes.planner.table import (
    disk_table,
    layouts_table,
    memory_table,
    time_table,
    why_not_table,
)
from megatron_soaes.planner.workload import workload_of
from megatron_soaes.recipe.check import check, shapes_of
from megatron_soaes.recipe.problems import Problem, RecipeErrors, did_you_mean
from megatron_soaes.recipe.schema import Cluster, ModelName, PreciseStage, Recipe
from megatron_soaes.recipe.shapes import ModelShape

NODE = 8
"""GPUs of a node, where nothing is said."""
WIDTH = 200
"""Columns of the tables where the output is no terminal."""


@dataclass(frozen=True)
class Asked:
    """What the command line says beside the recipe."""

    gpus: int | None = None
    gpu: str | None = None
    layouts: str | None = None
    """The stage whose layouts are ranked."""
    samples: Sequence[str] = ()
    """`STAGE=N`."""
    disk_gb_s: float | None = None


def plan(recipe: Recipe, asked: Asked, console: Console) -> list[Problem]:
    """Print the plan; returns what does not fit.

    Raises RecipeErrors for a recipe that breaks a rule (if only its layouts do, after the ranking
    that is asked for), and UserError for a recipe without a cluster when nothing takes its place,
    and for names that are not known.
    """
    cluster = cluster_of(recipe, asked)
    recipe = recipe.model_copy(update={"cluster": cluster})
    ranked = None if asked.layouts is None else _stage_named(recipe, asked.layouts)
    if not console.is_terminal:
        console.width = WIDTH
    try:
        shapes = check(recipe)
    except RecipeErrors as errors:
        # On fewer GPUs than the recipe was written for, which layouts there are is the question.
        if ranked is not None and all(".layout" in problem.path for problem in errors.problems):
            _rank(console, recipe, ranked, shapes_of(recipe)[0])
        raise
    disk = DISK_GB_S if asked.disk_gb_s is None else asked.disk_gb_s
    found = plan_recipe(recipe, shapes, cluster, counts_of(asked.samples), disk)
    for table in (memory_table(found), time_table(found), disk_table(found)):
        _print(console, table)
    if ranked is not None:
        _rank(console, recipe, ranked, shapes)
    wrong = problems(found)
    for problem in wrong:
        console.print(f"does not fit: {problem}", markup=False, soft_wrap=True)
    if not wrong:
        console.print(f"Every stage fits on {cluster.gpu}. Next: soaes preflight")
    return wrong


def _rank(
    console: Console,
    recipe: Recipe,
    stage: PreciseStage,
    shapes: Mapping[ModelName, ModelShape],
) -> None:
    """Print the layouts of the cluster's GPUs for a stage: the fastest, and why others cannot."""
    cluster = recipe.cluster
    assert cluster is not None
    workload = workload_of(recipe, stage, shapes)
    layouts = search_layouts(workload, cluster.gpus, cluster.gpu, cluster.gpus_per_node)
    _print(console, layouts_table(layouts))
    _print(console, why_not_table(layouts))


def cluster_of(recipe: Recipe, asked: Asked) -> Cluster:
    """The recipe's cluster, with the GPUs that are asked for instead of its own."""
    known = recipe.cluster
    gpu = asked.gpu or (known.gpu if known else None)
    if gpu is None:
        raise UserError(
            "cluster", "nothing in the recipe", "the GPUs that are meant",
            "Add a cluster to the recipe, or give --gpu and --gpus.",
        )  # fmt: skip
    each = known.gpus_per_node if known else NODE
    gpus = asked.gpus or (known.gpus if known else each)
    each = min(each, gpus)
    if gpus % each:
        whole = f"a multiple of {each}, the GPUs of a node, or fewer than those"
        fix = f"Say {gpus // each * each} or {-(-gpus // each) * each}."
        raise UserError(f"--gpus {gpus}", f"{gpus} GPUs", whole, fix)
    version = known.transformer_engine if known else None
    return Cluster(gpu=gpu, nodes=gpus // each, gpus_per_node=each, transformer_engine=version)


def counts_of(samples: Sequence[str]) -> dict[str, int]:
    """`STAGE=N` as numbers by name."""
    counts = {}
    for text in samples:
        name, _, number = text.partition("=")
        if not number.isdecimal() or int(number) == 0:
            raise UserError(
                f"--samples {text}", repr(text), "STAGE=N, N a whole number above 0",
                "Write it like sft-broad=120000.",
            )  # fmt: skip
        counts[name] = int(number)
    return counts


def _stage_named(recipe: Recipe, name: str) -> PreciseStage:
    stages = {one.name: one for one in recipe.stages if isinstance(one, PreciseStage)}
    if name not in stages:
        rule, fix = "a stage that trains or captures", did_you_mean(name, stages)
        raise UserError(f"--layouts {name}", "no such stage", rule, fix)
    return stages[name]


def _print(console: Console, table: Table) -> None:
    console.print(table)
    console.print()
