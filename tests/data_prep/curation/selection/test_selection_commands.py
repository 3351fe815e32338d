"""Relevance and thresholds as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import zstandard
from typer.testing import CliRunner

from megatron_soaes.cli_selection import eval_relevance, thresholds, train_relevance
from megatron_soaes.errors import UserError

SEEDS = Path(__file__).parents[4] / "examples/selection/seeds.jsonl"

app = typer.Typer()
app.command("train")(train_relevance)
app.command("eval")(eval_relevance)
app.command("thresholds")(thresholds)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception:
        raise result.exception
    return result.output


def scored(number: int, relevance: float) -> dict[str, object]:
    scores = {"credibility": 0.5, "relevance": relevance, "importance": 0.5}
    return {"id": f"d{number}", "text": "正文", "metadata": {"source": "press", "scores": scores}}


def test_a_model_is_trained_and_tested(tmp_path: Path) -> None:
    lines = SEEDS.read_text("utf-8").splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:40]), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text("\n".join(lines[40:]), encoding="utf-8")
    model, figures = tmp_path / "model.json", tmp_path / "figures.json"
    told = run("train", tmp_path / "train.jsonl", model)
    assert "20 relevant and 20 irrelevant texts" in told
    assert "held-out" in told
    told = run("eval", model, tmp_path / "test.jsonl", "--out", figures)
    assert "8 relevant and 8 irrelevant texts" in told
    assert "flatter" not in told
    assert json.loads(figures.read_text("utf-8"))["quality"]["auc"]["value"] > 0.8
    assert "flatter" in run("eval", model, tmp_path / "train.jsonl")


def test_cut_offs_are_reported_and_nothing_is_changed(tmp_path: Path) -> None:
    plain = tmp_path / "a.jsonl"
    plain.write_text(json.dumps(scored(1, 0.9)) + "\n\n" + json.dumps(scored(2, 0.2)) + "\n")
    packed = tmp_path / "b.jsonl.zst"
    packed.write_bytes(zstandard.compress(json.dumps(scored(3, 0.7)).encode() + b"\n"))
    row = scored(4, 0.1)
    row["metadata"] = json.dumps(row["metadata"])
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "c.parquet")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    out = tmp_path / "report"
    told = run("thresholds", tmp_path / "*.*", "--out", out, "--keep", "relevance>=0.6")
    assert "relevance>=0.6: keeps 2 documents, 50.0% of the characters" in told
    report = json.loads((out / "thresholds.json").read_text("utf-8"))
    assert report["all"] == {"documents": 4, "characters": 8, "tokens": None}
    assert (out / "thresholds.md").read_text("utf-8").startswith("# What each cut-off keeps")
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != out}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{", "invalid JSON"),
        ('{"id": 1}', "a JSON null at 'text'"),
        ('{"text": "", "metadata": []}', "a JSON array at 'metadata'"),
        ('{"text": "", "metadata": "{"}', "no JSON at 'metadata'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, found: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(scored(1, 0.9)) + "\n" + line + "\n")
    with pytest.raises(UserError, match=found) as caught:
        run("thresholds", file, "--out", tmp_path / "report")
    assert caught.value.where == f"{file}:2"
    assert not (tmp_path / "report").exists()


def test_a_wrong_selection_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"selection 'relevance>0\.6'"):
        run("thresholds", tmp_path / "none", "--out", tmp_path / "r", "--keep", "relevance>0.6")
