"""`soaes slurm`: a recipe as a chain of jobs. No heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_soaes.cli_pipeline import Overrides, RecipeFile

slurm_app = typer.Typer(help="Run a recipe as a chain of Slurm jobs.", no_args_is_help=True)


@slurm_app.command()
def submit(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    environment: Annotated[
        Path | None,
        typer.Option(help="Settings of your cluster; by default slurm/environment.sh."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands and the scripts; submit nothing.")
    ] = False,
) -> None:
    """Submit a job for every stage that is not done, each after those whose results it reads."""
    from megatron_soaes.pipeline.slurm import submission
    from megatron_soaes.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        typer.echo(submission.chain_of(loaded, environment).dry_run(), nl=False)
        return
    for job in submission.submit(loaded, environment):
        typer.echo(f"{job.job}: {', '.join(job.stages)}")
    typer.echo(f"Next: soaes slurm status {recipe}")


@slurm_app.command()
def status(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Show the state of every job, and of the stage that it runs."""
    from rich.console import Console

    from megatron_soaes.pipeline.slurm.watch import jobs_table, watch
    from megatron_soaes.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    Console(highlight=False).print(jobs_table(loaded, watch(loaded)))


@slurm_app.command()
def cancel(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Cancel every job of the recipe that has not ended; what is saved is kept."""
    from megatron_soaes.pipeline.slurm.watch import cancel as cancel_all
    from megatron_soaes.recipe.load import load_recipe

    ended = cancel_all(load_recipe(recipe, overrides or []))
    typer.echo(f"cancelled: {', '.join(ended)}" if ended else "no job was left to cancel")
