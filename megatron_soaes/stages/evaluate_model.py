"""Measure one model outside a recipe: the work of `soaes evaluate`.

A Megatron checkpoint is measured by several processes; `python -m
megatron_soaes.stages.evaluate_model JOB_JSON` is one of them.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from megatron_soaes import files
from megatron_soaes.accelerator.launch import end_at_once_on_stop_signals, launch
from megatron_soaes.accelerator.quiet import quiet_libraries
from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.evaluation.harness import HarnessRun, run_harness
from megatron_soaes.evaluation.result import EvaluationResult, Suite
from megatron_soaes.recipe.evaluation_settings import Evaluation
from megatron_soaes.recipe.schema import EvaluateStage, Models, ModelSource, Recipe
from megatron_soaes.recipe.section import Section
from megatron_soaes.recipe.training_settings import Layout

if TYPE_CHECKING:
    from megatron_soaes.stages.measuring import Subject

HF_FILES = "hf"
HARNESS_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class Job(Section):
    """One model, what is measured on it, and where the result goes."""

    backend: Literal["megatron", "lean", "endpoint"]
    model: Path
    """A root of checkpoints, an HF directory, or one with the tokenizer of what a server serves."""
    evaluation: Evaluation
    """Tasks and settings; nothing of it but `perplexity`, which needs a recipe's datasets."""
    out: Path
    """The result file; what belongs to the run lies beside it, see `work`."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    iteration: int | None = None
    layout: Layout = Layout()
    url: str | None = None
    served_model: str | None = None
    harness: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, for an HF directory."""
    include: Path | None = None

    @property
    def work(self) -> Path:
        """Folder of the answers, the logs and the harness's own output."""
        return self.out.with_name(f"{self.out.stem}.work")

    @property
    def hf_dir(self) -> Path:
        """Where the model's config and tokenizer are."""
        return self.model / HF_FILES if self.backend == "megatron" else self.model


def backend_of(model: Path, url: str | None) -> Literal["megatron", "lean", "endpoint"]:
    """The backend that fits: a server where there is a URL, else what the folder holds."""
    if url is not None:
        return "endpoint"
    return "megatron" if (model / "latest_checkpointed_iteration.txt").is_file() else "lean"


def job_from(fields: dict[str, Any]) -> Job:
    """A job of plain values, as a command line has them; UserError for a value that is wrong."""
    try:
        return Job.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors()[0]
        where = "soaes evaluate, " + ".".join(str(part) for part in first["loc"])
        rule = first["msg"].removeprefix("Input should be ")
        raise UserError(where, repr(first["input"]), rule, "Change the value.") from None


def run(job: Job) -> int:
    """Measure and write the result; returns an `ExitCode`. Raises UserError for bad input."""
    _check(job)
    if job.backend != "megatron":
        _measure(job)
        return ExitCode.OK
    job_file = job.work / "job.json"
    files.write_text(job_file, job.model_dump_json(indent=2) + "\n")
    return launch(
        "megatron_soaes.stages.evaluate_model",
        [str(job_file)],
        job.layout.processes,
        job.work / "logs",
    )


def _check(job: Job) -> None:
    """Refuse what does not go together, by the rules of recipes where there is a shape."""
    from megatron_soaes.accelerator.machine import read_machine
    from megatron_soaes.recipe.check import check
    from megatron_soaes.recipe.check_node import check_node
    from megatron_soaes.recipe.problems import RecipeErrors

    _check_backend(job)
    if job.harness and not job.evaluation.tasks:
        return
    recipe = Recipe(
        version=1,
        name="evaluate",
        workdir=job.work,
        models=Models(target=ModelSource(source=job.hf_dir, layout=job.layout)),
        stages=[EvaluateStage(name="evaluate", kind="evaluate", checkpoints=["import"])],
        evaluation=job.evaluation,
    )
    problems = check_node(recipe, read_machine())
    if problems:
        raise RecipeErrors("soaes evaluate", problems)
    if job.backend != "endpoint":
        check(recipe)


def _check_backend(job: Job) -> None:
    endpoint = job.backend == "endpoint"
    given = {"--url": job.url, "--served-model": job.served_model}
    for option, value in given.items():
        if endpoint != (value is not None):
            found = "nothing" if endpoint else value
            expected = "a value" if endpoint else "nothing"
            fix = "Give both --url and --served-model, or choose another backend."
            raise UserError(option, str(found), f"{expected} for backend {job.backend}", fix)
    if job.backend != "megatron" and (job.layout.processes > 1 or job.iteration is not None):
        raise UserError(
            "--tensor-parallel, --pipeline-parallel, --iteration", f"backend {job.backend}",
            "backend megatron", "Leave them out: they are about Megatron checkpoints.",
        )  # fmt: skip
    if job.harness and job.backend != "lean":
        raise UserError(
            "--harness", f"backend {job.backend}", "an HF directory (backend lean)",
            "Export the checkpoint with `soaes export hf` and evaluate that.",
        )  # fmt: skip
    if job.include is not None and not job.harness:
        raise UserError("--include", str(job.include), "a --harness task", "Name one.")
    known = [name for task in job.evaluation.tasks if (name := task.split("/")[1]) in job.harness]
    if known:
        raise UserError("--harness", known[0], "no name of a task file", "Rename the file.")


def _measure(job: Job) -> None:
    """Measure as this process, or as one of a group (collective)."""
    from megatron_soaes.accelerator.groups import world_rank
    from megatron_soaes.stages import subjects
    from megatron_soaes.stages.measuring import measure, read_tasks

    suites: dict[str, Suite] = {}
    if job.evaluation.tasks:
        tasks = read_tasks(job.evaluation)
        subject = _subject(job)
        model = subject.model
        suites = measure(subject, tasks, job.evaluation, job.work / "answers.jsonl")
    else:
        model = subjects.hf_weights(job.model)
    if job.harness:
        suites |= _harness(job)
    if world_rank() == 0:
        EvaluationResult(model, suites).write(job.out)


def _subject(job: Job) -> Subject:
    from megatron_soaes.stages import subjects

    batch_size = job.evaluation.batch_size
    if job.backend == "lean":
        return subjects.hf_model(job.model, job.dtype, batch_size)
    if job.backend == "endpoint":
        assert job.url is not None and job.served_model is not None
        return subjects.served_model(job.model, job.url, job.served_model, batch_size)
    return subjects.checkpoint(job.model, job.iteration, job.layout, job.dtype, batch_size)


def _harness(job: Job) -> dict[str, Suite]:
    from megatron_soaes.accelerator.device import this_device

    output = job.work / "harness"
    if output.exists():
        raise UserError(
            output, "the harness's output of an earlier run", "none",
            "Remove it, or give another --out.",
        )  # fmt: skip
    run = HarnessRun(
        model=job.model,
        tasks=job.harness,
        task_directory=job.include,
        device=str(this_device().torch_device),
        dtype=HARNESS_DTYPES[job.dtype],
        batch_size=job.evaluation.batch_size,
    )
    job.work.mkdir(parents=True, exist_ok=True)
    return run_harness(run, output)


def main(arguments: list[str]) -> int:
    """Run one rank of a job on a Megatron checkpoint."""
    end_at_once_on_stop_signals()
    quiet_libraries()
    # A stack of every thread in the log when the launcher aborts a rank that hangs.
    faulthandler.enable()
    from megatron_soaes.accelerator.groups import process_group, rendezvous_from_environment
    from megatron_soaes.training.engine import layout_groups

    job = Job.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
    try:
        with process_group(rendezvous_from_environment()), layout_groups(job.layout):
            _measure(job)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except Exception:
        traceback.print_exc()
        return ExitCode.FAILURE
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
