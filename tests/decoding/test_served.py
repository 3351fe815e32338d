"""Two servers, one plain and one speculative, compared on the same prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from data_prep.rehearsal.tokenizer import save_tokenizer, train_tokenizer
from megatron_soaes.cli import app
from megatron_soaes.decoding.lean import LeanModel
from tests.checkpoint.tiny import Case, edit_weights, make_model
from tests.decoding.server import SERVED, Server, running

TEXT = "A question is asked of a model, and the model answers the question that was asked."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of target, other (the target a little changed) and prompts.txt."""
    made = tmp_path_factory.mktemp("served")
    save_tokenizer(train_tokenizer([TEXT] * 10, 300), made / "tokenizer")
    make_model(made / "target", Case("qwen2", tied=True, vocab_size=300))
    shutil.copytree(made / "tokenizer", made / "target", dirs_exist_ok=True)
    shutil.copytree(made / "target", made / "other")
    edit_weights(made / "other", lambda tensors: tensors["model.norm.weight"].mul_(-1))
    (made / "prompts.txt").write_text("A question\nthe model\nWhy?\n", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Server]:
    with running(LeanModel(folder / "target")) as server:
        yield server


def compare(folder: Path, plain_url: str, speculative_url: str, *options: object) -> Result:
    return CliRunner().invoke(app, [
        "speculate-served", str(folder / "target"), "--plain-url", plain_url,
        "--speculative-url", speculative_url, "--served-model", SERVED,
        "--prompts", str(folder / "prompts.txt"), "--max-new-tokens", "8", *map(str, options),
    ])  # fmt: skip


def test_one_model_behind_both(folder: Path, plain: Server, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    plain.bodies.clear()
    result = compare(folder, plain.url, plain.url, "--rows", 2, "--repeats", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert "The same text: 3 of 3 prompts." in result.output
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["partings"] == []
    assert found["rows"] == 2
    assert found["plain_seconds_per_token"] > 0
    low, value, high = (found["speedup"][key] for key in ("low", "value", "high"))
    assert low <= value <= high
    # Both servers: three prompts, twice, and two before the clock starts.
    assert len(plain.bodies) == 2 * (3 * 2 + 2)


def test_a_text_that_differs_is_shown(folder: Path, plain: Server) -> None:
    with running(LeanModel(folder / "other")) as other:
        result = compare(folder, plain.url, other.url, "--repeats", 1)
    assert result.exit_code == 0, result.output
    assert "The same text: 0 of 3 prompts." in result.output
    assert "Prompt 2 parts at character " in result.output


def test_sampled_text_is_not_compared(folder: Path, plain: Server) -> None:
    result = compare(folder, plain.url, plain.url, "--repeats", 1, "--temperature", 1)
    assert result.exit_code == 0, result.output
    assert "The same text" not in result.output
    assert plain.bodies[-1]["temperature"] == 1


def test_a_server_that_does_not_know_the_model_is_named(folder: Path, plain: Server) -> None:
    result = compare(folder, plain.url, plain.url, "--served-model", "another")
    assert result.exit_code != 0
    assert f"{plain.url}/v1/completions" in str(result.exception)
