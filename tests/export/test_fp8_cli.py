"""FP8 exports as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from megatron_soaes.cli_export import hf_fp8, trtllm
from megatron_soaes.errors import UserError
from tests.checkpoint.tiny import Case, tensors_of
from tests.export.fp8_material import make, make_texts
from tests.export.ranks import read_config, read_ranks

app = typer.Typer()
app.command("trtllm")(trtllm)
app.command("hf-fp8")(hf_fp8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and texts."""
    root = tmp_path_factory.mktemp("fp8")
    make(root / "model", Case("qwen3", layers=2, vocab_size=300))
    make_texts(root / "texts.jsonl")
    return root


def export(*arguments: object) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_fp8_rank_files(folder: Path, tmp_path: Path) -> None:
    found = export(
        "trtllm", folder / "model", tmp_path / "out", "--fp8", "--calibration",
        folder / "texts.jsonl", "--draft", folder / "model", "--exclude", "down_proj",
        "--no-fp8-cache", "--tp", 2,
    ).stdout.splitlines()  # fmt: skip
    assert found[0].startswith("FP8: calibrated on 14 texts (")
    assert found[1].startswith("FP8: logit error: ")
    assert found[2].startswith("FP8: perplexity: ")
    assert found[3].startswith("FP8: acceptance: 1.0000 -> 0.9")
    assert found[4].startswith("2 ranks, ")
    quantization = read_config(tmp_path / "out")["quantization"]
    assert quantization["quant_algo"] == "FP8"
    assert quantization["kv_cache_quant_algo"] is None
    assert "*mlp.proj" in quantization["exclude_modules"]
    assert not [name for name in read_ranks(tmp_path / "out")[0] if "cache" in name]


def test_an_fp8_hf_directory(folder: Path, tmp_path: Path) -> None:
    arguments = "hf-fp8", folder / "model", tmp_path / "out", "--calibration"
    found = export(*arguments, folder / "texts.jsonl", "--dtype", "fp16").stdout.splitlines()
    assert found[1].startswith("FP8: logit error: ")
    stored = tensors_of(tmp_path / "out")
    assert found[-1] == f"{len(stored)} tensors -> {tmp_path / 'out'}"
    assert "model.layers.1.self_attn.k_proj.k_scale" in stored


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--max-logit-error", "logit error"),
        ("--max-perplexity-increase", "increase of the perplexity"),
        ("--max-acceptance-loss", "loss of acceptance"),
    ],
)
@pytest.mark.parametrize("command", [("trtllm", "--fp8"), ("hf-fp8",)])
def test_limits_are_options(
    folder: Path, tmp_path: Path, command: tuple[str, ...], option: str, named: str
) -> None:
    arguments = folder / "model", tmp_path / "out", "--calibration", folder / "texts.jsonl"
    with pytest.raises(UserError, match=f"FP8: {named}: found"):
        export(*command, *arguments, "--draft", folder / "model", option, -1)
    assert not list(tmp_path.iterdir())


def test_half_of_a_request_is_refused(folder: Path, tmp_path: Path) -> None:
    arguments = "trtllm", folder / "model", tmp_path / "out"
    with pytest.raises(UserError, match="--fp8: found no --calibration"):
        export(*arguments, "--fp8")
    alone = [
        ("--calibration", folder / "texts.jsonl"), ("--draft", folder), ("--exclude", "qkv"),
        ("--no-fp8-cache",), ("--max-logit-error", 0.1), ("--max-acceptance-loss", 0.1),
    ]  # fmt: skip
    for option in alone:
        with pytest.raises(UserError, match="it without --fp8"):
            export(*arguments, *option)
    assert not list(tmp_path.iterdir())
