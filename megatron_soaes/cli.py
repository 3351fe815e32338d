"""The `soaes` command: read the arguments, call one function, print. No logic, no heavy imports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_soaes.accelerator.quiet import quiet_libraries
from megatron_soaes.errors import ExitCode, UserError

app = typer.Typer(
    help="Turn an open-weight language model into a domain model, on Megatron-Core.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipe_app = typer.Typer(help="Show, check and document recipes.", no_args_is_help=True)
export_app = typer.Typer(help="Write checkpoints in other formats.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")
app.add_typer(export_app, name="export")

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes such as cpt.lr=1e-5 or models.target.layout.tensor_parallel=4."),
]


@app.command()
def run(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Run every stage of a recipe that is not done yet, on this machine."""
    from rich.console import Console

    from megatron_soaes.pipeline.run import run as run_recipe
    from megatron_soaes.pipeline.summary import print_summary
    from megatron_soaes.recipe.load import load_recipe

    code = run_recipe(recipe, overrides or [])
    if code == ExitCode.OK:
        print_summary(load_recipe(recipe, overrides or []), Console(highlight=False))
    raise typer.Exit(code)


@app.command()
def doctor() -> None:
    """Show what is installed and active here, and what each missing piece would give."""
    from rich.console import Console
    from rich.table import Table

    from megatron_soaes.accelerator.machine import doctor as findings

    table = Table("component", "state", "what it enables")
    for finding in findings():
        table.add_row(finding.component, finding.state, finding.enables)
    Console(highlight=False).print(table)


@recipe_app.command()
def show(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Print the recipe with every default filled in."""
    from megatron_soaes.recipe.load import load_recipe
    from megatron_soaes.recipe.reference import show as show_recipe

    typer.echo(show_recipe(load_recipe(recipe, overrides or [])))


@recipe_app.command()
def check(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Check the recipe's arithmetic and its declared cluster; needs neither GPU nor weights."""
    from megatron_soaes.recipe.check import check as check_recipe
    from megatron_soaes.recipe.load import load_recipe

    shapes = check_recipe(load_recipe(recipe, overrides or []))
    for name, shape in shapes.items():
        typer.echo(f"{name}: {shape.family}, {shape.parameters:,} parameters")
    typer.echo(f"{recipe}: no rule is broken")


@recipe_app.command()
def schema() -> None:
    """Print the reference of every recipe field."""
    from megatron_soaes.recipe.reference import recipe_reference

    typer.echo(recipe_reference())


@app.command("import")
def import_(
    hf_dir: Annotated[Path, typer.Argument(help="HF directory: config, safetensors, tokenizer.")],
    out: Annotated[Path, typer.Argument(help="New folder for the Megatron checkpoint.")],
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16; by default as stored.")] = None,
) -> None:
    """Convert an HF model to a Megatron checkpoint and prove that both give the same logits."""
    quiet_libraries()
    from megatron_soaes.checkpoint.import_hf import import_hf
    from megatron_soaes.models.build import dtype_named

    report = import_hf(hf_dir, out, dtype=dtype_named(dtype) if dtype else None)
    typer.echo(f"{report.tensors} tensors, {report.bytes:,} bytes -> {report.checkpoint}")
    typer.echo(str(report.parity))


@export_app.command("hf")
def export_hf_(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a Megatron checkpoint.")],
    out: Annotated[Path, typer.Argument(help="New folder for the HF model.")],
    iteration: Annotated[int | None, typer.Option(help="By default the newest.")] = None,
) -> None:
    """Convert a Megatron checkpoint to an HF model and prove that both give the same logits."""
    quiet_libraries()
    from megatron_soaes.checkpoint.export_hf import export_hf

    report = export_hf(checkpoint, out, iteration=iteration)
    typer.echo(f"{report.tensors} tensors, {report.bytes:,} bytes -> {report.directory}")
    typer.echo(str(report.parity))


def main() -> None:
    """Entry point of the console command."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(ExitCode.BAD_INPUT)


if __name__ == "__main__":
    main()
