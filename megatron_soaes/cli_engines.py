"""`soaes engines build`. No heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build(
    folder: Annotated[Path, typer.Argument(help="What soaes export pair wrote.")],
) -> None:
    """Build the pair's engines with trtllm-build; what is built already is kept."""
    from megatron_soaes.export.engines.build import build_engines

    report = build_engines(folder, lambda line: typer.echo(line, err=True))
    for role, engine in report.engines.items():
        typer.echo(f"{role} -> {engine}")
    typer.echo(f'Run the pair: python3 {folder / "run_speculative.py"} "A question"')
