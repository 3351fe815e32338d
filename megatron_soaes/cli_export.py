"""`soaes export trtllm` and `soaes export check`, for TensorRT-LLM. No heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_soaes.accelerator.quiet import quiet_libraries
from megatron_soaes.errors import ExitCode, UserError

if TYPE_CHECKING:
    from megatron_soaes.export.trtllm.check import CheckReport

SHOWN = 40
"""Problems that are printed; one mistake of a converter may break a rule in every tensor."""


def trtllm(
    source: Annotated[
        Path, typer.Argument(help="HF directory, or a folder of Megatron checkpoints.")
    ],
    out: Annotated[Path, typer.Argument(help="New folder for config.json and rank files.")],
    *,
    tp: Annotated[int, typer.Option(help="Tensor-parallel ranks of the engine.")] = 1,
    pp: Annotated[int, typer.Option(help="Pipeline stages of the engine.")] = 1,
    dtype: Annotated[str, typer.Option(help="bf16 or fp16.")] = "bf16",
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Vocabulary rows, for a pair that must agree; by default the model's."),
    ] = None,
    iteration: Annotated[
        int | None, typer.Option(help="Of Megatron checkpoints; by default the newest.")
    ] = None,
) -> None:
    """Write a checkpoint for trtllm-build of TensorRT-LLM up to 1.2.1."""
    quiet_libraries()
    from rich.console import Console
    from rich.progress import Progress

    from megatron_soaes.export.trtllm.writer import export_trtllm

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("parameters", total=None)
        report = export_trtllm(
            source,
            out,
            tensor_parallel=tp,
            pipeline_parallel=pp,
            dtype=dtype,
            vocab_size=vocab_size,
            iteration=iteration,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    typer.echo(
        f"{_counted(report.ranks, 'rank')}, {report.tensors} tensors, {report.bytes:,} bytes, "
        f"{report.vocab_size} vocabulary rows -> {report.directory}"
    )
    typer.echo(f"Check it: soaes export check {out} --against {source}")


def check(
    checkpoint: Annotated[Path, typer.Argument(help="TensorRT-LLM checkpoint, anyone's.")],
    *,
    against: Annotated[
        Path | None,
        typer.Option(help="HF directory or Megatron checkpoints that it should be, bit for bit."),
    ] = None,
    draft: Annotated[
        Path | None, typer.Option(help="A second checkpoint that is to draft for this one.")
    ] = None,
    draft_against: Annotated[
        Path | None, typer.Option(help="The model that the draft should be.")
    ] = None,
    served_length: Annotated[
        int | None,
        typer.Option(help="Longest served sequence of a pair; by default all that CHECKPOINT has."),
    ] = None,
) -> None:
    """Check a TensorRT-LLM checkpoint, or a target and its draft, against every rule."""
    quiet_libraries()
    from megatron_soaes.export.source import open_source
    from megatron_soaes.export.trtllm.check import check as check_checkpoint
    from megatron_soaes.export.trtllm.pair import check_pair

    if draft is None and (draft_against or served_length) is not None:
        raise UserError("--draft", "nothing", "the draft's checkpoint", "Name it.")
    if draft is not None and (against is None or draft_against is None):
        raise UserError(
            "--draft", "a pair without its models",
            "--against and --draft-against: a checkpoint holds no tokenizer to compare",
            "Name both models.",
        )  # fmt: skip
    sound = _print_report(check_checkpoint(checkpoint, against))
    if draft is not None and against is not None and draft_against is not None:
        sound = _print_report(check_checkpoint(draft, draft_against)) and sound
        hf = [open_source(model).hf_files for model in (against, draft_against)]
        differences = check_pair(checkpoint, draft, hf[0], hf[1], served_length)
        for problem in differences:
            typer.echo(f"pair: {problem}")
        if not differences:
            typer.echo("pair: one vocabulary, one tokenizer")
        sound = sound and not differences
    if not sound:
        raise typer.Exit(ExitCode.BAD_INPUT)


def _print_report(report: CheckReport) -> bool:
    """Print what a checkpoint's check found; returns whether it broke no rule."""
    for problem in report.problems[:SHOWN]:
        typer.echo(str(problem))
    hidden = len(report.problems) - SHOWN
    if hidden > 0:
        typer.echo(f"and {hidden} more of this kind")
    for note in report.notes:
        typer.echo(f"note: {note}")
    found = len(report.problems)
    verdict = _counted(found, "problem") if found else "no rule is broken"
    contents = f"{_counted(report.ranks, 'rank')}, {_counted(report.tensors, 'tensor')}"
    compared = f", {report.compared} tensors of the model compared" if report.compared else ""
    typer.echo(f"{report.directory}: {contents}{compared}: {verdict}")
    return not found


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
