"""Which jobs a recipe becomes: one a stage, those that only tokenize in one array."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import ceil

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.dependencies import makers_of
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import Plan
from megatron_soaes.stages.registry import stages_of

SCRIPTS = {
    "preprocess": "preprocess.sbatch",
    "import": "import.sbatch",
    "cpt": "train.sbatch",
    "sft": "train.sbatch",
    "sft_single_stage": "train.sbatch",
    "distill": "train.sbatch",
    "respond": "respond.sbatch",
    "capture": "capture.sbatch",
    "evaluate": "evaluate.sbatch",
    "export": "export.sbatch",
    "speculate": "speculate.sbatch",
}
"""The script in `slurm/` for each kind of stage."""
PREPROCESS = "preprocess"


@dataclass(frozen=True)
class Job:
    """One job, or one array of jobs."""

    name: str
    script: str
    stages: tuple[str, ...]
    """One; an array has one for each of its elements."""
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    after: tuple[str, ...]
    """Names of the jobs that must have succeeded."""

    @property
    def is_array(self) -> bool:
        """Whether it is submitted as an array."""
        return self.name == PREPROCESS


def jobs_of(recipe: Recipe, done: Collection[str] = ()) -> list[Job]:
    """The jobs of every stage but those that are `done`, each after the jobs that it waits for.

    Raises UserError for a stage whose processes do not fill its nodes evenly.
    """
    plans = {name: stage.plan() for name, stage in stages_of(recipe).items()}
    wanted = {name: plan for name, plan in plans.items() if name not in done}
    tokenized = tuple(name for name, plan in wanted.items() if plan.kind == PREPROCESS)
    jobs = []
    if tokenized:
        jobs.append(Job(PREPROCESS, SCRIPTS[PREPROCESS], tokenized, 1, 1, 0, ()))
    for name, plan in wanted.items():
        if plan.kind == PREPROCESS:
            continue
        makers = (PREPROCESS if one in tokenized else one for one in makers_of(plan, wanted))
        nodes, tasks, gpus = _resources(recipe, plan)
        after = tuple(dict.fromkeys(makers))
        jobs.append(Job(name, SCRIPTS[plan.kind], (name,), nodes, tasks, gpus, after))
    return jobs


def _resources(recipe: Recipe, plan: Plan) -> tuple[int, int, int]:
    """Nodes, tasks on each of them, GPUs on each of them: one GPU a task where there are GPUs."""
    cluster = recipe.cluster
    if cluster is None:
        return 1, plan.processes, 0
    nodes = ceil(plan.processes / cluster.gpus_per_node)
    if plan.processes % nodes:
        raise UserError(
            f"stage {plan.name}", f"{plan.processes} processes on {nodes} nodes",
            "as many on each node",
            f"Make data_parallel so that the processes are a multiple of {nodes}.",
        )  # fmt: skip
    tasks = plan.processes // nodes
    return nodes, tasks, tasks
