"""`soaes prep curate` and `soaes prep report`. No heavy imports."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from megatron_soaes.errors import ExitCode


class Executor(StrEnum):
    """Where the tasks of a curation run."""

    LOCAL = "local"
    SLURM = "slurm"
    RAY = "ray"


def curate(
    recipe: Annotated[Path, typer.Argument(help="The curation recipe, a YAML file.")],
    executor: Annotated[
        Executor, typer.Option(help="This machine, job arrays of Slurm, or Ray.")
    ] = Executor.LOCAL,
    workers: Annotated[int, typer.Option(min=1, help="Tasks at a time.")] = 1,
) -> None:
    """Clean and deduplicate a corpus, and tokenize what is left; goes on where it stopped."""
    from data_prep.command import stopping_on_sigterm
    from data_prep.curation.pipeline.executors import run_stages
    from data_prep.curation.pipeline.outcome import describe
    from data_prep.curation.pipeline.plan import OUTCOME, make_plan
    from data_prep.curation.pipeline.recipe import load_curation

    plan = make_plan(load_curation(recipe))
    try:
        with stopping_on_sigterm():
            run_stages(plan, executor.value, workers)
    except KeyboardInterrupt:
        typer.echo("stopped: finished tasks are kept; the same command goes on", err=True)
        raise typer.Exit(ExitCode.STOPPED) from None
    outcome = plan.recipe.output / OUTCOME
    if executor is Executor.SLURM:
        typer.echo(f"Submitted. {outcome} appears when the last job has ended.")
        return
    for line in describe(outcome):
        typer.echo(line)
    typer.echo(f"Account: {outcome}. Look at it: soaes prep report {plan.recipe.output}")


def report(
    output: Annotated[Path, typer.Argument(help="The output folder of a finished curation.")],
) -> None:
    """Make a page about a finished curation: what was dropped and why, samples, the blend."""
    from data_prep.curation.report.page import NUMBERS, write_report

    page = write_report(output)
    typer.echo(f"Open it in a browser: {page}")
    typer.echo(f"The same numbers as data: {output / NUMBERS}")
