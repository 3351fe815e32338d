"""Stages on datatrove's executors: this machine, Slurm or Ray.

The same tasks run everywhere, so the output is the same; a task that is done is not done again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor

from data_prep.curation.pipeline.plan import Plan
from data_prep.curation.pipeline.progress import telling_progress
from data_prep.curation.pipeline.stages import Stage, logs_of, plan_stages
from megatron_soaes.errors import UserError

Backend = Literal["local", "slurm", "ray"]


def run_stages(plan: Plan, backend: Backend, workers: int) -> None:
    """Run all stages (local, Ray), or submit them as a chain of job arrays (Slurm).

    `workers` is how many tasks run at a time. Raises UserError for bad input, in whichever process
    it was found, and when the recipe lacks what the backend needs.
    """
    stages = plan_stages(plan)
    if backend == "slurm":
        _submit(plan, stages, workers)
        return
    for stage in stages:
        with telling_progress(stage, logs_of(plan, stage.name)):
            executor(plan, stage, backend, workers).run()


def executor(plan: Plan, stage: Stage, backend: Backend, workers: int) -> Any:
    """The executor of one stage on this machine or on Ray."""
    common: dict[str, Any] = {
        "pipeline": stage.steps,
        "tasks": stage.tasks,
        "workers": min(workers, stage.tasks),
        "logging_dir": str(logs_of(plan, stage.name)),
    }
    if backend == "ray":
        from datatrove.executor import RayPipelineExecutor

        return RayPipelineExecutor(**common)
    return LocalPipelineExecutor(**common)


def _submit(plan: Plan, stages: list[Stage], workers: int) -> None:
    """Submit the last stage; datatrove submits what each depends on first."""
    before = None
    for stage in stages:
        before = slurm_executor(plan, stage, workers, before)
    assert before is not None
    before.run()


def slurm_executor(
    plan: Plan, stage: Stage, workers: int, before: SlurmPipelineExecutor | None
) -> SlurmPipelineExecutor:
    """The executor of one stage on Slurm.

    A stage is one job array whatever its tasks, because datatrove lets a dependent wait for the
    last array only.
    """
    slurm = plan.recipe.slurm
    if slurm is None:
        raise UserError(
            "slurm", "nothing", "a partition and limits", "Add a slurm section to the recipe."
        )
    activate = slurm.activate or Path(os.environ.get("VIRTUAL_ENV", "")) / "bin" / "activate"
    if not activate.is_file():
        raise UserError(
            "slurm.activate", f"no file {activate}", "the activate script of an environment",
            "Name that of an environment that the nodes see.",
        )  # fmt: skip
    return SlurmPipelineExecutor(
        pipeline=stage.steps,
        tasks=stage.tasks,
        workers=min(workers, stage.tasks),
        tasks_per_job=-(-stage.tasks // slurm.max_tasks),
        max_array_size=slurm.max_tasks,
        time=slurm.time,
        partition=slurm.partition,
        mem_per_cpu_gb=slurm.memory_gb,
        qos=slurm.qos or "",
        sbatch_args={"account": slurm.account} if slurm.account else {},
        venv_path=str(activate),
        job_name=f"curate-{stage.name}",
        logging_dir=str(logs_of(plan, stage.name)),
        slurm_logs_folder=str(logs_of(plan, stage.name) / "slurm"),
        depends=before,
        requeue=True,
    )
