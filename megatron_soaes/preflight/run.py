"""Look at everything that a recipe's run will need, in the order in which it would fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_soaes.checkpoint.directory import latest_iteration
from megatron_soaes.errors import UserError
from megatron_soaes.planner.plan import plan_recipe, problems
from megatron_soaes.planner.search import GIB
from megatron_soaes.planner.workload import workload_of
from megatron_soaes.preflight.data import check_dataset, check_tokenizers
from megatron_soaes.preflight.disk import check_disk
from megatron_soaes.preflight.findings import Finding, Found, look
from megatron_soaes.preflight.models import check_checkpoint, check_source
from megatron_soaes.preflight.ranks import build_ranks, check_built
from megatron_soaes.preflight.scripts import check_scripts
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import check, shapes_of
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.graph import import_node
from megatron_soaes.recipe.schema import Cluster, ModelName, PreciseStage, Recipe
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.stages.registry import stages_of
from megatron_soaes.training.engine import build_options

Shapes = Mapping[ModelName, ModelShape]
ONLY_THE_CLUSTER = (
    "speed, and real memory under fragmentation",
    "NCCL, the network and the health of nodes: each job looks at its own before it trains",
    "the arithmetic of FP8 and of Transformer Engine's layers (here the local ones were built)",
    "text beyond the first record of each file",
)
"""What no laptop can tell."""


@dataclass(frozen=True)
class Preflight:
    """All that was found."""

    findings: tuple[Finding, ...]
    not_looked_at: tuple[str, ...]

    @property
    def wrong(self) -> list[str]:
        """Every problem."""
        return [problem for finding in self.findings for problem in finding.wrong]


def preflight(recipe: Recipe, environment: Path | None, *, files_elsewhere: bool) -> Preflight:
    """Look at the recipe, its ranks, models, data, disk and jobs.

    With `files_elsewhere` models, corpora and the disk are on another machine and are not looked
    at; without it they must be here. `environment` is that of `slurm submit`. Nothing is written
    and nothing submitted.
    """
    findings = [look("recipe", _recipe(recipe))]
    shapes, _ = shapes_of(recipe)
    unseen: list[str] = []
    if findings[0].wrong:
        unseen.append("everything else: the recipe must be right first")
        return Preflight(tuple(findings), tuple(unseen))
    if recipe.cluster is not None:
        findings.append(look("memory", _memory(recipe, shapes, recipe.cluster)))
    findings += _ranks(recipe, shapes)
    if files_elsewhere:
        unseen.append("models, corpora and disk: they are on another machine (--files-elsewhere)")
    else:
        findings += _files(recipe, shapes)
    jobs = check_scripts(recipe, environment, files_elsewhere=files_elsewhere)
    findings.append(look("jobs", jobs))
    return Preflight(tuple(findings), (*unseen, *ONLY_THE_CLUSTER))


def _recipe(recipe: Recipe) -> Found:
    check(recipe)
    yield f"{len(graph.nodes(recipe))} stages keep every rule"


def _memory(recipe: Recipe, shapes: Shapes, cluster: Cluster) -> Found:
    plan = plan_recipe(recipe, shapes, cluster)
    yield from problems(plan)
    most = max((one.total for stage in plan.stages for one in stage.memory), default=0)
    yield f"at most {most / GIB:.1f} of {GPUS[cluster.gpu].memory_gib} GiB, as planned"


def _ranks(recipe: Recipe, shapes: Shapes) -> Iterator[Finding]:
    """Once for all stages that build the same model in the same way."""
    stages: dict[str, list[PreciseStage]] = {}
    for stage in recipe.stages:
        if isinstance(stage, PreciseStage):
            layout, dtype = graph.layout_of(recipe, stage), stage.precision.dtype
            stages.setdefault(f"{stage.model} {layout} {dtype}", []).append(stage)
    for same in stages.values():
        names = ", ".join(stage.name for stage in same)
        yield look(f"ranks of {names}", _built(recipe, same[0], shapes))


def _built(recipe: Recipe, stage: PreciseStage, shapes: Shapes) -> Found:
    workload = workload_of(recipe, stage, shapes)
    source = graph.model_of(recipe, stage)
    # The layers of an FP8 stage have the same weights.
    precision = stage.precision.model_copy(update={"fp8": None})
    options = build_options(workload.shape, source, workload.layout, precision)
    built = build_ranks(workload, options)
    yield from check_built(built, workload.shape, workload.vocab_size)
    yield (
        f"{workload.layout.processes} ranks, {built.ranks} of them distinct: each is built, "
        f"has as many parameters as planned ({built.largest_bytes / 2**30:.2f} GiB of weights at "
        f"most), and together they hold each of {len(built.shapes)} tensors once"
    )


def _files(recipe: Recipe, shapes: Shapes) -> Iterator[Finding]:
    """Models, text and disk, on this machine."""
    plans = look("inputs", _inputs(recipe))
    yield plans
    for name, shape in shapes.items():
        source = recipe.models.get(name)
        assert source is not None
        yield look(f"model {name}", check_source(source, shape))
        for root in _checkpoints(recipe, name):
            yield look(f"checkpoint {root.parent.name}", check_checkpoint(root, shape))
    yield look("tokenizers", check_tokenizers(recipe, shapes))
    for dataset in recipe.data.datasets:
        yield look(f"dataset {dataset}", check_dataset(recipe, dataset, shapes["target"]))
    yield look("disk", check_disk(recipe, shapes))


def _inputs(recipe: Recipe) -> Found:
    """Every file that a stage reads and no stage makes."""
    stages = stages_of(recipe)
    made = [stage.directory for stage in stages.values()]
    count = 0
    for stage in stages.values():
        try:
            inputs = stage.plan().inputs
        except UserError as error:
            yield error
            continue
        for path in inputs.values():
            if any(path.is_relative_to(folder) for folder in made):
                continue
            count += 1
            if not path.exists():
                yield UserError(
                    path, "nothing", f"what the stage {stage.name} reads", "Correct the path."
                )
    yield f"{count} files and folders that stages read are there"


def _checkpoints(recipe: Recipe, model: ModelName) -> list[Path]:
    """Of the model's stages, those that were made already."""
    stages = [import_node(model), *(one.name for one in recipe.stages if one.model == model)]
    roots = [recipe.workdir / stage / "checkpoints" for stage in stages]
    return [root for root in roots if latest_iteration(root) is not None]
