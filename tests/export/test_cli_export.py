"""`soaes export trtllm` and `soaes export check` as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from megatron_soaes.cli_export import SHOWN, check, trtllm
from megatron_soaes.errors import ExitCode, UserError
from tests.checkpoint.tiny import Case
from tests.export.conftest import ModelOf
from tests.export.ranks import edit_rank, read_config, write_config
from tests.export.test_pair import make

app = typer.Typer()
app.command("trtllm")(trtllm)
app.command("check")(check)


def export(*arguments: object) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_export_and_check(tmp_path: Path, model_of: ModelOf) -> None:
    hf_dir, out = model_of(Case("qwen2")), tmp_path / "out"
    written = export("trtllm", hf_dir, out, "--tp", 2, "--pp", 2, "--dtype", "bf16")
    assert written.stdout.startswith("4 ranks, 70 tensors, ")
    assert f"250 vocabulary rows -> {out}" in written.stdout
    assert f"soaes export check {out} --against {hf_dir}" in written.stdout
    checked = export("check", out, "--against", hf_dir)
    assert checked.exit_code == ExitCode.OK
    expected = f"{out}: 4 ranks, 70 tensors, 51 tensors of the model compared: no rule is broken"
    assert checked.stdout.splitlines() == [expected]


def test_a_broken_rule_is_printed_and_ends_with_code_2(tmp_path: Path, model_of: ModelOf) -> None:
    out = tmp_path / "out"
    export("trtllm", model_of(Case("qwen2")), out)
    edit_rank(out, 0, lambda tensors: tensors.pop("lm_head.weight"))
    checked = export("check", out)
    assert checked.exit_code == ExitCode.BAD_INPUT
    assert "rank0.safetensors: lm_head.weight: found nothing" in checked.stdout
    assert checked.stdout.endswith("1 rank, 34 tensors: 1 problem\n")


def test_many_problems_are_counted(tmp_path: Path, model_of: ModelOf) -> None:
    out = tmp_path / "out"
    export("trtllm", model_of(Case("qwen2")), out, "--tp", 2)
    write_config(out, read_config(out) | {"dtype": "float16"})
    lines = export("check", out).stdout.splitlines()
    assert len(lines) == SHOWN + 2
    assert lines[-2] == "and 30 more of this kind"


def test_a_pair_is_checked_together(tmp_path: Path) -> None:
    target = make(tmp_path / "target", Case("qwen2", layers=2))
    draft = make(tmp_path / "draft", Case("qwen2", tied=True, layers=1))
    arguments = (
        "check", target.checkpoint, "--against", target.hf_dir,
        "--draft", draft.checkpoint, "--draft-against", draft.hf_dir,
    )  # fmt: skip
    fitting = export(*arguments)
    assert fitting.exit_code == ExitCode.OK
    assert fitting.stdout.splitlines()[-1] == "pair: one vocabulary, one tokenizer"
    too_short = export(*arguments, "--served-length", 300)
    assert too_short.exit_code == ExitCode.BAD_INPUT
    assert "pair: " in too_short.stdout
    assert "expected at least 300" in too_short.stdout


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--draft: found a pair without its models"):
        export("check", tmp_path, "--draft", tmp_path)
    with pytest.raises(UserError, match="--draft: found nothing"):
        export("check", tmp_path, "--served-length", 300)
