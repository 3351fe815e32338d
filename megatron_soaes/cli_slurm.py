"""`soaes slurm`: a recipe as a chain of jobs. No heavy imports."""

from __future__ import annotations

from typing import Annotated

import typer

from megatron_soaes.cli_pipeline import Overrides, RecipeFile, SingleStage, load
from megatron_soaes.cli_planning import Environment, look_before
from megatron_soaes.errors import ExitCode

slurm_app = typer.Typer(help="Run a recipe as a chain of Slurm jobs.", no_args_is_help=True)


@slurm_app.command()
def submit(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    single_stage: SingleStage = False,
    environment: Environment = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands and the scripts; submit nothing.")
    ] = False,
) -> None:
    """Submit a job for every stage that is not done, each after those whose results it reads.

    The preflight comes first; nothing is submitted unless all is well.
    """
    from megatron_soaes.pipeline.slurm import submission

    loaded = load(recipe, overrides, single_stage)
    if dry_run:
        typer.echo(submission.chain_of(loaded, environment).dry_run(), nl=False)
        return
    if look_before(loaded, environment).wrong:
        raise typer.Exit(ExitCode.BAD_INPUT)
    for job in submission.submit(loaded, environment):
        typer.echo(f"{job.job}: {', '.join(job.stages)}")
    typer.echo(f"Next: soaes slurm status {recipe}")


@slurm_app.command()
def status(
    recipe: RecipeFile, overrides: Overrides = None, *, single_stage: SingleStage = False
) -> None:
    """Show the state of every job, and of the stage that it runs."""
    from rich.console import Console

    from megatron_soaes.pipeline.slurm.watch import jobs_table, watch

    loaded = load(recipe, overrides, single_stage)
    Console(highlight=False).print(jobs_table(loaded, watch(loaded)))


@slurm_app.command()
def cancel(
    recipe: RecipeFile, overrides: Overrides = None, *, single_stage: SingleStage = False
) -> None:
    """Cancel every job of the recipe that has not ended; what is saved is kept."""
    from megatron_soaes.pipeline.slurm.watch import cancel as cancel_all

    ended = cancel_all(load(recipe, overrides, single_stage))
    typer.echo(f"cancelled: {', '.join(ended)}" if ended else "no job was left to cancel")
