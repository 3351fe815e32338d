"""What a run says at its end about drafts: acceptance, speed, and what to try."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from megatron_soaes.pipeline import summary
from megatron_soaes.pipeline.manifest import Manifest
from megatron_soaes.pipeline.summary import (
    acceptance,
    first_question,
    invitation,
    print_summary,
    speculation,
)
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import Recipe

FAST = {
    "draft_length": 4, "plain_seconds_per_token": 0.004, "seconds_per_token": 0.0025,
    "speedup": 1.6, "speedup_low": 1.5, "speedup_high": 1.72, "identical_prompts": 39,
    "prompts": 40, "identical": 0.975,
}  # fmt: skip
EXACT = {
    **FAST, "seconds_per_token": 0.005, "speedup": 0.8, "speedup_low": 0.75, "speedup_high": 0.9,
    "identical_prompts": 40,
}  # fmt: skip
BEFORE = {
    "alpha": 0.41, "greedy_match": 0.5, "tokens_per_pass": [1.4, 1.5, 1.6],
    "ideal_speedup": [1.2, 1.1, 1.0],
}  # fmt: skip
AFTER = {
    "alpha": 0.63, "greedy_match": 0.7, "tokens_per_pass": [1.6, 2.0, 2.2],
    "ideal_speedup": [1.4, 1.5, 1.45],
}  # fmt: skip
QUESTION = {"messages": [{"role": "user", "content": "Who chairs the board?"}]}
RECIPE = """
version: 1
name: pair
workdir: work
models: {target: {source: target}, draft: {source: draft}}
"""


def manifest(
    stage: str, kind: str, metrics: Mapping[str, Any], inputs: Mapping[str, Path] | None = None
) -> Manifest:
    return Manifest(
        stage=stage, kind=kind, config={}, outputs={}, metrics=dict(metrics),
        inputs={n: {"path": str(path), "hash": ""} for n, path in (inputs or {}).items()},
        code={}, versions={}, device="CPU", processes=1,
        started="2025-01-01T00:00:00+00:00", finished="2025-01-01T00:00:09+00:00",
    )  # fmt: skip


def pair_of(folder: Path, *prompts: Mapping[str, Any]) -> Manifest:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, prompts)) + "\n", encoding="utf-8")
    inputs = {"target": folder / "hf/hf", "draft": folder / "draft-hf/hf", "prompts": file}
    return manifest("worth", "speculate", {"fast": FAST, "exact": EXACT}, inputs)


def cells(table: Table) -> list[list[str]]:
    """Rows of a table."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_acceptance_is_told_by_set_at_the_length_that_is_best_afterwards() -> None:
    metrics = {"acceptance": {"before": {"talk": BEFORE}, "after": {"talk": AFTER}}}
    table = acceptance(manifest("distill", "distill", metrics))
    assert cells(table) == [
        ["talk", "0.410 -> 0.630", "0.500 -> 0.700", "2", "1.50 -> 2.00", "1.10 -> 1.50"]
    ]


def test_a_sampled_store_says_nothing_about_the_most_likely_token() -> None:
    sets = [{k: v for k, v in one.items() if k != "greedy_match"} for one in (BEFORE, AFTER)]
    metrics = {"acceptance": {"before": {"talk": sets[0]}, "after": {"talk": sets[1]}}}
    assert cells(acceptance(manifest("distill", "distill", metrics)))[0][2] == "- -> -"


def test_both_modes_are_told(tmp_path: Path) -> None:
    assert cells(speculation(pair_of(tmp_path, QUESTION))) == [
        ["fast", "4", "4.00", "2.50", "1.60 (1.50 - 1.72)", "39 of 40"],
        ["exact", "4", "4.00", "5.00", "0.80 (0.75 - 0.90)", "40 of 40"],
    ]


def test_the_invitation_is_a_command_and_a_question(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    assert invitation(pair_of(folder, QUESTION)) == (
        f"Try it: soaes chat '{folder}/hf/hf' --draft '{folder}/draft-hf/hf'"
        "   and ask: Who chairs the board?"
    )
    assert "ask" not in invitation(pair_of(folder, {"prompt": "The board"}))


def test_the_question_is_the_first_that_stands_alone_on_a_line(tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "Read this:\nThe board met."}]}
    talk = {"messages": [*QUESTION["messages"], {"role": "assistant", "content": "She."}] * 2}
    pair_of(tmp_path, {"prompt": "The board"}, long, talk, QUESTION)
    assert first_question(tmp_path / "prompts.jsonl") == "Who chairs the board?"
    lines = tmp_path / "prompts.txt"
    lines.write_text("The board\n", encoding="utf-8")
    assert first_question(lines) is None


class Finished:
    """A stage of which only its folder is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory


def summary_of(recipe: Recipe, manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> str:
    for one in manifests:
        one.write(recipe.workdir / one.stage)
    stages = {one.stage: Finished(recipe.workdir / one.stage) for one in manifests}
    monkeypatch.setattr(summary, "stages_of", lambda _: stages)
    out = StringIO()
    print_summary(recipe, Console(file=out, width=110, highlight=False))
    return out.getvalue()


def test_a_run_with_a_measured_pair_ends_with_the_invitation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    sets = {"acceptance": {"before": {"talk": BEFORE}, "after": {"talk": AFTER}}}
    learnt, pair = manifest("distill", "distill", sets), pair_of(tmp_path, QUESTION)
    text = summary_of(recipe, [learnt, pair], monkeypatch)
    assert text.index("0.410 -> 0.630") < text.index("39 of 40")
    assert text.rstrip().splitlines()[-1] == invitation(pair)


def test_a_run_without_these_stages_says_nothing_of_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    # Distillation without held-out sets measures no acceptance.
    stages = [manifest("cpt", "cpt", {}), manifest("distill", "distill", {"acceptance": {}})]
    text = summary_of(recipe, stages, monkeypatch)
    assert "cpt" in text
    assert "acceptance by" not in text
    assert "Try it" not in text
