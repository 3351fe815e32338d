"""`soaes export pair` as a user types it."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

from megatron_soaes.cli_pair import pair


def test_export_and_what_is_said_of_it(tmp_path: Path, target: Path, draft: Path) -> None:
    app = typer.Typer()
    app.command()(pair)
    out = tmp_path / "out"
    arguments = [target, draft, out, "--trtllm-version", "1.3.0rc24", "--draft-length", 3]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        f"Target and draft, 256 vocabulary rows each -> {out}",
        "Draft length 3: it was asked for.",
        "No engines: TensorRT-LLM 1.3.0rc24 has none.",
        f"Read {out / 'README.md'}: what to start, and what is unverified.",
    ]
