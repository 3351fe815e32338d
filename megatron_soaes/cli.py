"""The `soaes` command: read the arguments, call one function, print. No logic, no heavy imports."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_soaes import cli_decoding
from megatron_soaes.accelerator.quiet import quiet_libraries
from megatron_soaes.cli_curate import curate, report
from megatron_soaes.cli_datasets import inspect, merge, split
from megatron_soaes.cli_engines import build as build_engines
from megatron_soaes.cli_evaluate import compare, evaluate, prep_sft
from megatron_soaes.cli_export import check as check_export
from megatron_soaes.cli_export import hf_fp8, trtllm
from megatron_soaes.cli_nemo import nemo
from megatron_soaes.cli_pair import pair
from megatron_soaes.cli_pipeline import Overrides, RecipeFile, init, run, status
from megatron_soaes.cli_pipeline import report as report_run
from megatron_soaes.cli_planning import plan, preflight, rehearse
from megatron_soaes.cli_selection import eval_relevance, thresholds, train_relevance
from megatron_soaes.cli_slurm import slurm_app
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
prep_app = typer.Typer(help="Prepare data for training.", no_args_is_help=True)
checkpoint_app = typer.Typer(help="Look into, check and rewrite checkpoints.", no_args_is_help=True)
app.add_typer(export_app, name="export")
engines_app = typer.Typer(help="Build engines of TensorRT-LLM.", no_args_is_help=True)
app.add_typer(engines_app, name="engines")
engines_app.command("build")(build_engines)
app.add_typer(prep_app, name="prep")
app.add_typer(checkpoint_app, name="checkpoint")
prep_app.command()(curate)
prep_app.command()(report)
prep_app.command()(thresholds)
prep_app.command()(inspect)
prep_app.command()(merge)
prep_app.command()(split)
relevance_app = typer.Typer(help="A classifier of your domain's texts.", no_args_is_help=True)
relevance_app.command("train")(train_relevance)
relevance_app.command("eval")(eval_relevance)
prep_app.add_typer(relevance_app, name="relevance")
app.command()(init)
app.command()(plan)
app.command()(preflight)
app.command()(rehearse)
app.command()(run)
app.command()(status)
app.command("report")(report_run)
app.add_typer(slurm_app, name="slurm")
app.command()(evaluate)
app.command()(compare)
# Its options are those of data_prep.preprocess_sft, which also explains them.
FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True}
prep_app.command("sft", context_settings=FORWARD, add_help_option=False)(prep_sft)


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


@prep_app.command()
def index(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Build the sample indexes of tokenized datasets now, so that no GPU waits for them."""
    quiet_libraries()
    from megatron_soaes.recipe.load import load_recipe
    from megatron_soaes.stages.indexes import build_indexes

    build_indexes(load_recipe(recipe, overrides or []), typer.echo)


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="HF directory, Megatron-LM or NeMo 2 torch_dist checkpoint.")
    ],
    out: Annotated[Path, typer.Argument(help="New folder for the Megatron checkpoint.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="HF tokenizer folder; for Megatron-LM checkpoints.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16; by default as stored.")] = None,
) -> None:
    """Convert a model to a Megatron checkpoint; transformers must give the same logits."""
    quiet_libraries()
    from megatron_soaes.checkpoint.import_megatron import import_model
    from megatron_soaes.models.build import dtype_named

    wanted = dtype_named(dtype) if dtype else None
    report = import_model(source, out, tokenizer=tokenizer, dtype=wanted)
    typer.echo(f"{report.tensors} tensors, {report.bytes:,} bytes -> {report.checkpoint}")
    for skipped in report.skipped:
        typer.echo(f"left behind: {skipped}")
    typer.echo(str(report.parity))


@app.command()
def adopt(
    megatron_dir: Annotated[Path, typer.Argument(help="Checkpoints of a Megatron-LM run.")],
    data: Annotated[
        list[Path], typer.Option(help="Prefix of a .bin/.idx pair; once for each dataset.")
    ],
    tokenizer: Annotated[Path, typer.Option(help="HF tokenizer folder of the run.")],
    out: Annotated[Path, typer.Option(help="The recipe to write.")],
    overrides: Overrides = None,
) -> None:
    """Write the recipe that goes on with the model of a Megatron-LM run."""
    quiet_libraries()
    from megatron_soaes.pipeline.adopt import adopt as adopt_run

    adoption = adopt_run(megatron_dir, data, tokenizer, out, overrides or [])
    typer.echo(f"iteration {adoption.iteration}, {adoption.steps} steps to go -> {adoption.recipe}")
    for difference in adoption.differences:
        typer.echo(f"- {difference}")


export_app.command("trtllm")(trtllm)
export_app.command("check")(check_export)
export_app.command("hf-fp8")(hf_fp8)
export_app.command("nemo")(nemo)
export_app.command("pair")(pair)


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


CheckpointPath = Annotated[
    Path, typer.Argument(help="A run's checkpoints folder, or one iter_ folder in it.")
]
Iteration = Annotated[int | None, typer.Option(help="By default the newest.")]


@checkpoint_app.command("show")
def show_checkpoint(checkpoint: CheckpointPath, iteration: Iteration = None) -> None:
    """Print a checkpoint's tensors, sizes, training state, layout and versions."""
    quiet_libraries()
    from megatron_soaes.checkpoint.show import show as contents

    typer.echo(str(contents(checkpoint, iteration)))


@checkpoint_app.command()
def verify(checkpoint: CheckpointPath, iteration: Iteration = None) -> None:
    """Check that a checkpoint is what was saved, by its checksums and its structure."""
    quiet_libraries()
    from megatron_soaes.checkpoint.verify import verify as verify_checkpoint

    report = verify_checkpoint(checkpoint, iteration)
    typer.echo(str(report))
    if report.damages:
        raise typer.Exit(ExitCode.BAD_INPUT)


@checkpoint_app.command()
def reshard(
    checkpoint: CheckpointPath,
    out: Annotated[Path, typer.Argument(help="New folder for the rewritten checkpoint.")],
    *,
    iteration: Iteration = None,
    weights_only: Annotated[bool, typer.Option(help="Leave the optimizer state out.")] = False,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16; with --weights-only.")] = None,
    file_bytes: Annotated[int, typer.Option(help="About the size of each file.")] = 4 * 2**30,
) -> None:
    """Rewrite a checkpoint with other files, without its optimizer state, or in another dtype."""
    quiet_libraries()
    from megatron_soaes.checkpoint.reshard import reshard as rewrite
    from megatron_soaes.models.build import dtype_named

    report = rewrite(
        checkpoint,
        out,
        iteration=iteration,
        weights_only=weights_only,
        dtype=dtype_named(dtype) if dtype else None,
        file_bytes=file_bytes,
    )
    typer.echo(f"{report.files} shard files, {report.bytes:,} bytes -> {report.directory}")


cli_decoding.register(app)


def main() -> None:
    """Entry point of the console command."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(ExitCode.BAD_INPUT)


if __name__ == "__main__":
    main()
