"""Look at everything that a recipe's run will need, in the order in which it would fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_soaes.planner.plan import plan_recipe, problems
from megatron_soaes.planner.search import GIB
from megatron_soaes.preflight.data import check_dataset
from megatron_soaes.preflight.disk import check_disk
from megatron_soaes.preflight.findings import Finding, Found, Unseen, look
from megatron_soaes.preflight.layouts import Shapes, look_at_layouts
from megatron_soaes.preflight.models import check_checkpoint, check_source, checkpoints_at_hand
from megatron_soaes.preflight.questions import look_at_questions
from megatron_soaes.preflight.scripts import chain_to_check, check_scripts
from megatron_soaes.preflight.tokenizers import look_at_tokenizers
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import check, shapes_of
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.wording import counted

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

    @property
    def wrong(self) -> list[str]:
        """Every problem, once: two datasets may lack the same chat template."""
        return list(dict.fromkeys(one for finding in self.findings for one in finding.wrong))

    @property
    def not_looked_at(self) -> list[str]:
        """What may still be wrong."""
        unseen = [what for finding in self.findings for what in finding.unseen]
        return [*unseen, *ONLY_THE_CLUSTER]


def preflight(recipe: Recipe, environment: Path | None, *, files_elsewhere: bool) -> Preflight:
    """Look at the recipe, its ranks, models, data, disk and jobs.

    With `files_elsewhere` models, corpora and the disk are on another machine and are not looked
    at; without it they must be here. `environment` is that of `slurm submit`. Nothing is written
    and nothing submitted.
    """
    first = look("recipe", _recipe(recipe))
    if first.wrong:
        unseen = ("everything else: the recipe must be right first",)
        return Preflight((replace(first, unseen=unseen),))
    shapes, _ = shapes_of(recipe)
    built = [look("memory", _memory(recipe, shapes)), *look_at_layouts(recipe, shapes)]
    files = [look("files", _elsewhere())] if files_elsewhere else list(_files(recipe, shapes))
    # A stage whose files are wrong is blocked, which would be told a second time.
    sound = not files_elsewhere and not any(finding.wrong for finding in files)
    jobs = look("jobs", _jobs(recipe, environment, files=sound))
    return Preflight((first, *built, *files, jobs))


def _recipe(recipe: Recipe) -> Found:
    check(recipe)
    count = len(graph.nodes(recipe))
    yield f"{counted(count, 'stage')}: every rule is kept"


def _memory(recipe: Recipe, shapes: Shapes) -> Found:
    if recipe.cluster is None:
        yield Unseen("memory: the recipe names no cluster")
        return
    plan = plan_recipe(recipe, shapes, recipe.cluster)
    wrong = problems(plan)
    yield from wrong
    if not wrong:
        most = max((one.total for stage in plan.stages for one in stage.memory), default=0)
        capacity = GPUS[recipe.cluster.gpu].memory_gib
        yield f"at most {most / GIB:.1f} of {capacity} GiB, as planned"


def _elsewhere() -> Found:
    yield Unseen("models, corpora and disk: they are on another machine (--files-elsewhere)")


def _files(recipe: Recipe, shapes: Shapes) -> Iterator[Finding]:
    """Models, text and disk, on this machine; each thing that is missing is told once."""
    for name, shape in shapes.items():
        source = recipe.models.get(name)
        assert source is not None
        yield look(f"model {name}", check_source(source, shape))
    for checkpoint, model in checkpoints_at_hand(recipe):
        found = check_checkpoint(recipe, checkpoint, model, shapes[model])
        yield look(f"checkpoint {checkpoint} of the {model}", found)
    tokenizers = look_at_tokenizers(recipe, shapes)
    yield from tokenizers
    right = tokenizers[0].is_well
    for dataset in recipe.data.datasets:
        checked = check_dataset(recipe, dataset, shapes["target"], tokenizer=right)
        yield look(f"dataset {dataset}", checked)
    yield from look_at_questions(recipe, tokenizer=right)
    yield look("disk", check_disk(recipe, shapes))


def _jobs(recipe: Recipe, environment: Path | None, *, files: bool) -> Found:
    yield from check_scripts(chain_to_check(recipe, environment, files=files))
