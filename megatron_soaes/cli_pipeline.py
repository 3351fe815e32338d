"""`soaes init`, `run`, `status` and `report`: a recipe, and its stages. No heavy imports."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_soaes.errors import ExitCode

if TYPE_CHECKING:
    from megatron_soaes.recipe.schema import Recipe

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes such as cpt.lr=1e-5 or models.target.layout.tensor_parallel=4."),
]


SingleStage = Annotated[
    bool,
    typer.Option(
        "--single-stage",
        help="With a control that trains on the samples of all SFT stages at once, and is "
        "evaluated: what the order of the stages is worth.",
    ),
]


def load(recipe: Path, overrides: list[str] | None, single_stage: bool) -> Recipe:
    """The recipe of a file with its changes and, if wanted, the control of its curriculum."""
    from megatron_soaes.recipe.ablation import with_single_stage
    from megatron_soaes.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    return with_single_stage(loaded) if single_stage else loaded


class LauncherName(StrEnum):
    """What starts the ranks of a stage."""

    LOCAL = "local"
    SRUN = "srun"


def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    single_stage: SingleStage = False,
    first: Annotated[
        str | None,
        typer.Option("--from", help="Begin with this stage; those before it must be done."),
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="End with this stage.")] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="This stage alone, beside others if need be; what it reads must be made."
        ),
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(
            help="Start this stage anew though it is done or begun; what there is of it is kept "
            "aside. May be repeated."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and why; touch nothing.")
    ] = False,
    launcher: Annotated[
        LauncherName,
        typer.Option(help="Ranks are processes of this machine, or steps of the Slurm job."),
    ] = LauncherName.LOCAL,
) -> None:
    """Run every stage of a recipe that is not done yet."""
    from rich.console import Console

    from megatron_soaes.accelerator.launch import end_at_once_on_stop_signals, launch
    from megatron_soaes.accelerator.srun import launch_by_srun
    from megatron_soaes.pipeline.run import run as run_recipe
    from megatron_soaes.pipeline.selection import Selection
    from megatron_soaes.pipeline.summary import print_summary

    end_at_once_on_stop_signals()
    loaded = load(recipe, overrides, single_stage)
    selection = Selection(first, last, tuple(force or ()), only)
    start = {LauncherName.LOCAL: launch, LauncherName.SRUN: launch_by_srun}[launcher]
    code = run_recipe(loaded, selection, dry_run=dry_run, launcher=start)
    if code == ExitCode.OK and not dry_run and only is None:
        print_summary(loaded, Console(highlight=False))
    raise typer.Exit(code)


def status(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    single_stage: SingleStage = False,
    as_json: Annotated[bool, typer.Option("--json", help="As data.")] = False,
) -> None:
    """Show how far every stage of a recipe is; starts nothing."""
    import json

    from rich.console import Console

    from megatron_soaes.pipeline import status as reader

    loaded = load(recipe, overrides, single_stage)
    stages = reader.read_status(loaded)
    if as_json:
        typer.echo(json.dumps(reader.as_json(stages), indent=2))
        return
    Console(highlight=False).print(reader.status_table(loaded, stages))


def report(
    recipe: RecipeFile, overrides: Overrides = None, *, single_stage: SingleStage = False
) -> None:
    """Write report.html and report.json of a run, finished or not, into its workdir."""
    from megatron_soaes.pipeline.report.page import write_report

    page = write_report(load(recipe, overrides, single_stage))
    typer.echo(f"{page} (and {page.with_suffix('.json').name} beside it)")


def init(
    directory: Annotated[Path, typer.Argument(help="New folder of the project.")],
    base: Annotated[Path, typer.Option(help="HF directory of the model to start from.")],
    corpus: Annotated[str, typer.Option(help="Your texts or conversations: a path or a glob.")],
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs to train on.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Their kind, such as h100-80g.")] = None,
) -> None:
    """Write a commented recipe, an environment file and a README for a project of your own."""
    from megatron_soaes.pipeline.init.project import init_project

    for file in init_project(directory, base, corpus, gpus, gpu):
        typer.echo(str(file))
    typer.echo(f"Next: soaes recipe check {directory / 'recipe.yaml'}")
