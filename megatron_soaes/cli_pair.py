"""`soaes export pair`: a target and its draft, ready to be served. No heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_soaes.accelerator.quiet import quiet_libraries
from megatron_soaes.cli_progress import progress_bars

Target = Annotated[Path, typer.Argument(help="HF directory or folder of Megatron checkpoints.")]
Draft = Annotated[Path, typer.Argument(help="The same; with the target's tokenizer.")]
Out = Annotated[Path, typer.Argument(help="New folder for models, scripts and README.md.")]
Version = Annotated[str, typer.Option(help="Of TensorRT-LLM, such as 1.2.1.")]
Ranks = Annotated[int, typer.Option(help="Tensor-parallel ranks.")]
DraftRanks = Annotated[
    int | None, typer.Option(help="Ranks of the draft's engine; by default those of --tp.")
]
PipelineStages = Annotated[int, typer.Option(help="Pipeline stages of the target's engine.")]
Dtype = Annotated[str, typer.Option(help="bf16 or fp16.")]
Measured = Annotated[
    Path | None, typer.Option(help="Report of soaes speculate --out; gives the draft length.")
]
DraftLength = Annotated[int | None, typer.Option(help="Tokens to draft, whatever was measured.")]
MaxBatchSize = Annotated[int, typer.Option(help="Requests at a time.")]
MaxInputLen = Annotated[
    int | None,
    typer.Option(help="Tokens of a prompt and its answer; by default all --max-seq-len holds."),
]
MaxSeqLen = Annotated[
    int | None,
    typer.Option(help="The same with a draft in flight; by default what both models reach."),
]


def pair(
    target: Target,
    draft: Draft,
    out: Out,
    *,
    trtllm_version: Version,
    tp: Ranks = 1,
    draft_tp: DraftRanks = None,
    pp: PipelineStages = 1,
    dtype: Dtype = "bf16",
    measured: Measured = None,
    draft_length: DraftLength = None,
    max_batch_size: MaxBatchSize = 8,
    max_input_len: MaxInputLen = None,
    max_seq_len: MaxSeqLen = None,
) -> None:
    """Write a target and its draft for TensorRT-LLM, vLLM and SGLang, and what starts them."""
    quiet_libraries()
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
    with progress_bars() as bar:
        report = export_pair(target, draft, out, options, bar)
    made = report.deployment
    typer.echo(f"Target and draft, {made.vocab_size} vocabulary rows each -> {report.directory}")
    typer.echo(f"Draft length {made.draft_length.tokens}: {made.draft_length.reason}.")
    if made.release.engines:
        typer.echo(f"Build the engines where trtllm-build is: soaes engines build {out}")
    else:
        typer.echo(f"No engines: TensorRT-LLM {trtllm_version} has none.")
    typer.echo(f"Read {report.directory / 'README.md'}: what to start, and what is unverified.")
