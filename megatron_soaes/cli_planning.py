"""`soaes plan`, `preflight` and `rehearse`: know before the queue. No heavy imports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_soaes.cli_pipeline import Overrides, RecipeFile, SingleStage, load
from megatron_soaes.errors import ExitCode

if TYPE_CHECKING:
    from megatron_soaes.preflight.run import Preflight
    from megatron_soaes.recipe.schema import Recipe

VISIBLE = "CUDA_VISIBLE_DEVICES"
Environment = Annotated[
    Path | None, typer.Option(help="Settings of your cluster; by default slurm/environment.sh.")
]


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    single_stage: SingleStage = False,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="So many GPUs instead of those of the cluster.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Of this kind, such as h100-80g, instead of the cluster's.")
    ] = None,
    layouts: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Also rank every layout of these GPUs for this stage."),
    ] = None,
    samples: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE=N",
            help="Samples that a stage with epochs goes through in all. May be repeated.",
        ),
    ] = None,
    disk: Annotated[
        float | None,
        typer.Option(min=0.001, help="GB/s that all writers of a checkpoint reach together."),
    ] = None,
) -> None:
    """Say what every stage takes: memory, time, GPU-hours and bytes; refuse what does not fit."""
    from rich.console import Console

    from megatron_soaes.planner import command

    loaded = load(recipe, overrides, single_stage)
    asked = command.Asked(gpus, gpu, layouts, tuple(samples or ()), disk)
    if command.plan(loaded, asked, Console(highlight=False)):
        raise typer.Exit(ExitCode.BAD_INPUT)


def rehearse(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    single_stage: SingleStage = False,
    workdir: Annotated[
        Path | None,
        typer.Option(help="Folder of the rehearsal; by default that of its name in rehearsals/."),
    ] = None,
    environment: Environment = None,
) -> None:
    """Run the whole recipe here, in small: every stage, schedule, gate and kind of layout."""
    from megatron_soaes.rehearsal.run import rehearse as play

    loaded = load(recipe, overrides, single_stage)
    report = play(loaded, workdir or Path("rehearsals") / loaded.name, environment)
    typer.echo(report.text(), nl=False)
    raise typer.Exit(report.exit_code)


def preflight(
    recipe: RecipeFile,
    overrides: Overrides = None,
    *,
    single_stage: SingleStage = False,
    environment: Environment = None,
    files_elsewhere: Annotated[
        bool,
        typer.Option(
            "--files-elsewhere",
            help="Models, corpora and the disk are on another machine: do not look at them.",
        ),
    ] = False,
) -> None:
    """Build every distinct rank of the true layouts here, and look at all that a run needs."""
    loaded = load(recipe, overrides, single_stage)
    found = look_before(loaded, environment, files_elsewhere=files_elsewhere)
    raise typer.Exit(ExitCode.BAD_INPUT if found.wrong else ExitCode.OK)


def look_before(
    recipe: Recipe, environment: Path | None, *, files_elsewhere: bool = False
) -> Preflight:
    """Run the preflight and print its page."""
    with _without_gpus():
        from megatron_soaes.accelerator.quiet import quiet_libraries

        quiet_libraries()
        from megatron_soaes.preflight.page import page
        from megatron_soaes.preflight.run import preflight as look

        found = look(recipe, environment, files_elsewhere=files_elsewhere)
    typer.echo(page(recipe.name, found), nl=False)
    return found


@contextmanager
def _without_gpus() -> Iterator[None]:
    """For the block this process sees no GPU; what Slurm is told afterwards knows nothing of it.

    Ranks of a whole cluster are built one by one: their memory must stay a mere promise, which it
    is on a CPU.
    """
    seen = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ""
    try:
        yield
    finally:
        if seen is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = seen
