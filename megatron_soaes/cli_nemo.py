"""`soaes export nemo`. No heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_soaes.accelerator.quiet import quiet_libraries


def nemo(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a Megatron checkpoint.")],
    out: Annotated[Path, typer.Argument(help="New folder for the NeMo checkpoint.")],
    *,
    iteration: Annotated[int | None, typer.Option(help="By default the newest.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32 or bf16; by default the one of the weights.")
    ] = None,
) -> None:
    """Write a checkpoint that NeMo 2.7 loads; NeMo is not needed."""
    quiet_libraries()
    from megatron_soaes.export.nemo import export_nemo
    from megatron_soaes.models.build import dtype_named

    wanted = dtype_named(dtype) if dtype else None
    report = export_nemo(checkpoint, out, iteration=iteration, dtype=wanted)
    typer.echo(
        f"iteration {report.iteration}: {report.tensors} tensors, {report.bytes:,} bytes of "
        f"{report.dtype} -> {report.directory}"
    )
    for note in report.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"Load it in NeMo with nemo.lightning.io.load_context({str(report.directory)!r}).")
