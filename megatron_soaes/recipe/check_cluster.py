"""Can the cluster that the recipe declares run it? Needs no cluster."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_soaes.recipe.check_arithmetic import divisors, layout_path
from megatron_soaes.recipe.engine import engine_settings, engine_versions
from megatron_soaes.recipe.fp8 import release, transformer_engine_rules
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.graph import layout_of
from megatron_soaes.recipe.problems import Problem, did_you_mean
from megatron_soaes.recipe.schema import Cluster, PreciseStage, Recipe, Stage, TrainingStage


def check_cluster(recipe: Recipe) -> list[Problem]:
    """Every broken rule of the declared cluster; none when the recipe declares no cluster."""
    cluster = recipe.cluster
    if cluster is None:
        return []
    problems = list(_declaration(cluster))
    for stage in recipe.stages:
        if recipe.models.get(stage.model) is None:
            continue
        problems += _processes(recipe, stage, cluster)
        if isinstance(stage, PreciseStage) and stage.precision.fp8:
            problems += _fp8(stage, cluster)
        if isinstance(stage, TrainingStage):
            problems += _engine(stage, cluster)
    return list(dict.fromkeys(problems))


def _declaration(cluster: Cluster) -> Iterator[Problem]:
    if cluster.gpu not in GPUS:
        fix = did_you_mean(cluster.gpu, GPUS)
        yield Problem("cluster.gpu", f"'{cluster.gpu}'", "a GPU kind we have figures of", fix)
    if cluster.transformer_engine is not None and not release(cluster.transformer_engine):
        found = f"'{cluster.transformer_engine}'"
        yield Problem("cluster.transformer_engine", found, "a version", "Write it like 2.11.0.")


def _processes(recipe: Recipe, stage: Stage, cluster: Cluster) -> Iterator[Problem]:
    layout, path = layout_of(recipe, stage), layout_path(stage)
    if layout.processes > cluster.gpus:
        found = f"{layout.processes} processes"
        rule = f"at most {cluster.gpus}, the GPUs of the cluster"
        fix = "Lower data_parallel (or another dimension), or declare more nodes."
        yield Problem(path, found, rule, fix)
    elif (
        layout.processes > cluster.gpus_per_node and cluster.gpus_per_node % layout.tensor_parallel
    ):
        options = ", ".join(map(str, divisors(cluster.gpus_per_node)))
        rule = (
            f"a divisor of gpus_per_node, {cluster.gpus_per_node}: tensor parallelism exchanges "
            "data twice in every layer and is too slow between nodes"
        )
        value = str(layout.tensor_parallel)
        yield Problem(f"{path}.tensor_parallel", value, rule, f"Use one of {options}.")


def _fp8(stage: PreciseStage, cluster: Cluster) -> Iterator[Problem]:
    assert stage.precision.fp8 is not None
    recipe = stage.precision.fp8.recipe
    path = f"stages.{stage.name}.precision.fp8"
    gpu = GPUS.get(cluster.gpu)
    if gpu and recipe not in gpu.fp8_recipes:
        able = ", ".join(gpu.fp8_recipes)
        rule = f"one of {able}" if able else "no FP8"
        fix = f"Use {able}, or train in bf16." if able else "Remove fp8: train in bf16."
        yield Problem(f"{path}.recipe", recipe, f"{rule} on {cluster.gpu}", fix)
    version = cluster.transformer_engine
    if version is None:
        fix = "Give the version installed on the cluster, such as 2.11.0."
        rule = f"a version, because stage '{stage.name}' uses FP8"
        yield Problem("cluster.transformer_engine", "nothing", rule, fix)
    elif release(version):
        yield from transformer_engine_rules(stage, version)


def _engine(stage: TrainingStage, cluster: Cluster) -> Iterator[Problem]:
    version, wanted = cluster.transformer_engine, dict(engine_settings(stage))
    if wanted and version is None:
        fix = "Give the version installed on the cluster, such as 2.11.0."
        rule = f"a version, because of {next(iter(wanted))}"
        yield Problem("cluster.transformer_engine", "nothing", rule, fix)
    if version and release(version):
        yield from engine_versions(stage, version)
