"""`soaes export pair`: a target and its draft, ready to be served. No heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_soaes.accelerator.quiet import quiet_libraries


def pair(
    target: Annotated[Path, typer.Argument(help="HF directory or folder of Megatron checkpoints.")],
    draft: Annotated[Path, typer.Argument(help="The same; with the target's tokenizer.")],
    out: Annotated[Path, typer.Argument(help="New folder for models, scripts and README.md.")],
    *,
    trtllm_version: Annotated[str, typer.Option(help="Of TensorRT-LLM, such as 1.2.1.")],
    tp: Annotated[int, typer.Option(help="Tensor-parallel ranks.")] = 1,
    draft_tp: Annotated[
        int | None, typer.Option(help="Ranks of the draft's engine; by default those of --tp.")
    ] = None,
    pp: Annotated[int, typer.Option(help="Pipeline stages of the target's engine.")] = 1,
    dtype: Annotated[str, typer.Option(help="bf16 or fp16.")] = "bf16",
    measured: Annotated[
        Path | None, typer.Option(help="Report of soaes speculate --out; gives the draft length.")
    ] = None,
    draft_length: Annotated[
        int | None, typer.Option(help="Tokens to draft, whatever was measured.")
    ] = None,
    max_batch_size: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    max_input_len: Annotated[
        int | None,
        typer.Option(help="Tokens of a prompt and its answer; by default all --max-seq-len holds."),
    ] = None,
    max_seq_len: Annotated[
        int | None,
        typer.Option(help="The same with a draft in flight; by default what both models reach."),
    ] = None,
) -> None:
    """Write a target and its draft for TensorRT-LLM, vLLM and SGLang, and what starts them."""
    quiet_libraries()
    from rich.console import Console
    from rich.progress import Progress

    from megatron_soaes.checkpoint.progress import Progress as Callback
    from megatron_soaes.export.pair import PairOptions, export_pair

    options = PairOptions(
        version=trtllm_version,
        tensor=tp,
        draft_tensor=draft_tp,
        pipeline=pp,
        dtype=dtype,
        draft_length=draft_length,
        measured=measured,
        max_batch_size=max_batch_size,
        max_input_len=max_input_len,
        max_seq_len=max_seq_len,
    )
    with Progress(console=Console(stderr=True), transient=True) as progress:

        def bar(name: str) -> Callback:
            task = progress.add_task(name, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        report = export_pair(target, draft, out, options, bar)
    made = report.deployment
    typer.echo(f"Target and draft, {made.vocab_size} vocabulary rows each -> {report.directory}")
    typer.echo(f"Draft length {made.draft_length.tokens}: {made.draft_length.reason}.")
    if made.release.engines:
        typer.echo(f"Build the engines where trtllm-build is: soaes engines build {out}")
    else:
        typer.echo(f"No engines: TensorRT-LLM {trtllm_version} has none.")
    typer.echo(f"Read {report.directory / 'README.md'}: what to start, and what is unverified.")
