"""`soaes export trtllm`, `hf-fp8` and `check`, for TensorRT-LLM. No heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_soaes.accelerator.quiet import quiet_libraries
from megatron_soaes.cli_progress import progress_bars
from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.wording import counted

if TYPE_CHECKING:
    from megatron_soaes.export.fp8.calibration import Fp8
    from megatron_soaes.export.fp8.report import Quality
    from megatron_soaes.export.trtllm.check import CheckReport

SHOWN = 40
"""Problems that are printed; one mistake of a converter may break a rule in every tensor."""

Source = Annotated[Path, typer.Argument(help="HF directory, or a folder of Megatron checkpoints.")]
Iteration = Annotated[
    int | None, typer.Option(help="Of Megatron checkpoints; by default the newest.")
]
Fp8Draft = Annotated[
    Path | None, typer.Option(help="FP8: measure this draft's acceptance by the target too.")
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="FP8: leave qkv, o_proj, gate_up or down_proj in DTYPE, in all layers."),
]
Fp8Cache = Annotated[
    bool | None, typer.Option(help="FP8: cache keys and values as FP8 too (default).")
]
MaxLogitError = Annotated[
    float | None, typer.Option(help="FP8: refuse above this part of the logits (0.15).")
]
MaxPerplexityIncrease = Annotated[
    float | None, typer.Option(help="FP8: refuse above this part of the perplexity (0.02).")
]
MaxAcceptanceLoss = Annotated[
    float | None, typer.Option(help="FP8: refuse where the rate falls by more than this (0.02).")
]
Dtype = Annotated[str, typer.Option(help="bf16 or fp16.")]
CheckpointFolder = Annotated[
    Path, typer.Argument(help="New folder for config.json and rank files.")
]
Ranks = Annotated[int, typer.Option(help="Tensor-parallel ranks of the engine.")]
PipelineStages = Annotated[int, typer.Option(help="Pipeline stages of the engine.")]
Rows = Annotated[
    int | None,
    typer.Option(help="Vocabulary rows, for a pair that must agree; by default the model's."),
]
InFp8 = Annotated[
    bool, typer.Option("--fp8", help="Matrices of the layers in FP8; needs --calibration.")
]
Calibration = Annotated[
    Path | None,
    typer.Option(help="FP8: real prompts; .jsonl of prompt, text or messages, or text lines."),
]


def trtllm(
    source: Source,
    out: CheckpointFolder,
    *,
    tp: Ranks = 1,
    pp: PipelineStages = 1,
    dtype: Dtype = "bf16",
    vocab_size: Rows = None,
    iteration: Iteration = None,
    fp8: InFp8 = False,
    calibration: Calibration = None,
    draft: Fp8Draft = None,
    exclude: Exclude = None,
    fp8_cache: Fp8Cache = None,
    max_logit_error: MaxLogitError = None,
    max_perplexity_increase: MaxPerplexityIncrease = None,
    max_acceptance_loss: MaxAcceptanceLoss = None,
) -> None:
    """Write a checkpoint for trtllm-build of TensorRT-LLM up to 1.2.1."""
    quiet_libraries()
    asked = {
        "draft": draft, "exclude": exclude, "fp8-cache": fp8_cache,
        "max-logit-error": max_logit_error, "max-perplexity-increase": max_perplexity_increase,
        "max-acceptance-loss": max_acceptance_loss,
    }  # fmt: skip
    _require_all_or_nothing(fp8, {"calibration": calibration, **asked})
    quantisation = None if calibration is None else _quantisation(calibration, asked)
    from megatron_soaes.export.trtllm.writer import export_trtllm

    with progress_bars() as bar:
        report = export_trtllm(
            source,
            out,
            tensor_parallel=tp,
            pipeline_parallel=pp,
            dtype=dtype,
            vocab_size=vocab_size,
            iteration=iteration,
            fp8=quantisation,
            calibration_progress=bar("calibration") if fp8 else None,
            progress=bar("parameters"),
        )
    if report.fp8 is not None:
        _print_quality(report.fp8)
    typer.echo(
        f"{counted(report.ranks, 'rank')}, {report.tensors} tensors, {report.bytes:,} bytes, "
        f"{report.vocab_size} vocabulary rows -> {report.directory}"
    )
    typer.echo(f"Check it: soaes export check {out} --against {source}")


def hf_fp8(
    source: Source,
    out: Annotated[Path, typer.Argument(help="New folder for the FP8 model.")],
    *,
    calibration: Annotated[
        Path, typer.Option(help="Real prompts; .jsonl of prompt, text or messages, or text lines.")
    ],
    dtype: Dtype = "bf16",
    iteration: Iteration = None,
    draft: Fp8Draft = None,
    exclude: Exclude = None,
    fp8_cache: Fp8Cache = None,
    max_logit_error: MaxLogitError = None,
    max_perplexity_increase: MaxPerplexityIncrease = None,
    max_acceptance_loss: MaxAcceptanceLoss = None,
) -> None:
    """Write an FP8 HF directory for TensorRT-LLM's PyTorch backend, vLLM and SGLang."""
    quiet_libraries()
    from megatron_soaes.export.fp8.hf import export_hf_fp8

    asked = {
        "draft": draft, "exclude": exclude, "fp8-cache": fp8_cache,
        "max-logit-error": max_logit_error, "max-perplexity-increase": max_perplexity_increase,
        "max-acceptance-loss": max_acceptance_loss,
    }  # fmt: skip
    with progress_bars() as bar:
        report = export_hf_fp8(
            source,
            out,
            _quantisation(calibration, asked),
            dtype=dtype,
            iteration=iteration,
            calibration_progress=bar("calibration"),
            progress=bar("parameters"),
        )
    _print_quality(report.quality)
    typer.echo(f"{report.tensors} tensors -> {report.directory}")


def _require_all_or_nothing(fp8: bool, asked: Mapping[str, object]) -> None:
    if fp8 and asked["calibration"] is None:
        raise UserError(
            "--fp8", "no --calibration", "a file of real prompts", "Name one: scales come from it."
        )
    for option, value in asked.items():
        if not fp8 and value is not None:
            raise UserError(
                f"--{option}", "it without --fp8", "both", "Add --fp8, or leave it out."
            )


def _quantisation(calibration: Path, asked: Mapping[str, Any]) -> Fp8:
    """What was asked for by options (None: the default), by their names."""
    from megatron_soaes.export.fp8.calibration import Fp8
    from megatron_soaes.export.fp8.report import Limits

    limits = {
        name.removeprefix("max-").replace("-", "_"): value
        for name, value in asked.items()
        if name.startswith("max-") and value is not None
    }
    return Fp8(
        calibration,
        draft=asked["draft"],
        cache=asked["fp8-cache"] is not False,
        exclude=tuple(asked["exclude"] or ()),
        limits=Limits(**limits),
    )


def _print_quality(quality: Quality) -> None:
    for line in quality.lines():
        typer.echo(f"FP8: {line}")


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
    verdict = counted(found, "problem") if found else "no rule is broken"
    contents = f"{counted(report.ranks, 'rank')}, {counted(report.tensors, 'tensor')}"
    compared = f", {report.compared} tensors of the model compared" if report.compared else ""
    typer.echo(f"{report.directory}: {contents}{compared}: {verdict}")
    return not found
