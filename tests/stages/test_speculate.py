"""Speculate stages: both modes of an exported pair, figures for gates, promises that are kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.rehearsal.tokenizer import save_tokenizer, train_tokenizer
from megatron_soaes.accelerator.groups import Rendezvous, process_group
from megatron_soaes.decoding.measure import logits_digests
from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.gates import flat_metrics
from megatron_soaes.recipe.gates import Gate
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import SpeculateStage as SpeculateSettings
from megatron_soaes.stages.speculate import SpeculateStage
from tests.checkpoint.tiny import Case, edit_weights, make_model
from tests.stages.exam import write_lines

TEXT = "A question is asked of a model, and the model answers the question that was asked."
RECIPE = """
version: 1
name: pair
workdir: work
models: {target: {source: target}, draft: {source: draft}}
stages:
  - {name: hf, kind: export}
  - {name: draft-hf, kind: export, model: draft}
  - name: worth
    kind: speculate
    target: hf
    draft: draft-hf
    prompts: prompts.jsonl
    most_prompts: 3
    draft_lengths: [2, 4]
    repeats: 2
    max_new_tokens: 8
    dtype: fp32
    draft_dtype: fp32
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of recipe.yaml, prompts.jsonl and work/{hf,draft-hf}/hf.

    The draft is the target with another scale of its last norm: it writes the same, by other
    logits.
    """
    folder = tmp_path_factory.mktemp("pair")
    target, draft = (folder / "work" / name / "hf" for name in ("hf", "draft-hf"))
    save_tokenizer(train_tokenizer([TEXT] * 10, 300), folder / "tokenizer")
    make_model(target, Case("qwen2", tied=True, layers=2, vocab_size=300))
    shutil.copytree(folder / "tokenizer", target, dirs_exist_ok=True)
    shutil.copytree(target, draft)
    edit_weights(draft, lambda tensors: tensors["model.norm.weight"].mul_(1.1))
    write_lines(
        folder / "prompts.jsonl",
        ({"messages": [{"role": "user", "content": f"{n}: why?"}]} for n in range(6)),
    )
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def stage_of(root: Path, *overrides: str) -> SpeculateStage:
    recipe = load_recipe(root / "recipe.yaml", overrides)
    settings = recipe.stages[-1]
    assert isinstance(settings, SpeculateSettings)
    return SpeculateStage(recipe, settings)


def run_alone(stage: SpeculateStage) -> dict[str, Any]:
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)):
        return stage.run()


@pytest.fixture(scope="module")
def metrics(root: Path) -> dict[str, Any]:
    return run_alone(stage_of(root))


def test_both_modes_are_measured_and_written(root: Path, metrics: dict[str, Any]) -> None:
    plan = stage_of(root).plan()
    assert all(path.is_file() for path in plan.outputs.values())
    for mode in ("fast", "exact"):
        found = json.loads(plan.outputs[f"{mode}.json"].read_text(encoding="utf-8"))
        assert found["exact"] == (mode == "exact")
        assert (found["prompts"], found["repeats"]) == (3, 2)
        assert [one["draft_length"] for one in found["lengths"]] == [2, 4]
        speedups = [one["speedup"]["value"] for one in found["lengths"]]
        assert metrics[mode]["speedup"] == max(speedups)
        assert metrics[mode]["draft_length"] == [2, 4][speedups.index(max(speedups))]
    report = plan.outputs["report.txt"].read_text(encoding="utf-8")
    assert report.index("fast mode") < report.index("exact mode")
    assert max(len(line) for line in report.splitlines() if "│" in line) <= 110


def test_figures_of_a_draft_that_is_always_right(metrics: dict[str, Any]) -> None:
    for one in metrics.values():
        assert one["alpha"] == one["acceptance_rate"] == one["identical"] == 1
        # A stop or the end cuts the last passes short.
        assert 1 < one["acceptance_length_with_bonus"] <= one["draft_length"] + 1
        assert one["acceptance_length_without_bonus"] < one["acceptance_length_with_bonus"]
        assert one["speedup_low"] <= one["speedup_high"]
        assert one["drafting"] + one["judging"] + one["rest"] == pytest.approx(1)
        assert one["share_of_ideal"] * one["ideal_speedup"] == pytest.approx(one["speedup_in_mode"])
        assert one["go"] == (one["recommended_draft_length"] > 0)
    assert metrics["exact"]["equal_logits"] == 1
    assert "equal_logits" not in metrics["fast"]


def test_gates_can_speak_of_every_figure(metrics: dict[str, Any]) -> None:
    flat = flat_metrics(metrics)
    assert len(flat) == sum(map(len, metrics.values()))
    assert Gate.parse("exact.identical >= 1").holds(flat)
    assert Gate.parse("exact.equal_logits >= 1").holds(flat)
    assert not Gate.parse("fast.speedup >= 99").holds(flat)


def test_a_broken_promise_of_exact_mode_is_an_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def other_in_the_second(*arguments: Any) -> list[str]:
        calls.append(logits_digests(*arguments))
        return ["another", *calls[-1][1:]] if len(calls) == 2 else calls[-1]

    tested = "megatron_soaes.decoding.comparison.logits_digests"
    monkeypatch.setattr(tested, other_in_the_second)
    shutil.copytree(root / "work", tmp_path / "work", ignore=shutil.ignore_patterns("worth"))
    stage = stage_of(root, f"workdir={tmp_path / 'work'}", "worth.modes=[exact]")
    with pytest.raises(UserError, match=r"worth, exact mode.* logits of 2 of 3 prompts"):
        run_alone(stage)
    assert "2 of 3 prompts" in stage.plan().outputs["report.txt"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        "most_prompts=2", "modes=[fast]", "draft_lengths=[2]", "adaptive=true", "repeats=4",
        "max_new_tokens=9", "dtype=bf16", "draft_dtype=bf16",
    ],
)  # fmt: skip
def test_other_settings_are_another_stage(root: Path, change: str) -> None:
    assert stage_of(root, f"worth.{change}").plan().config != stage_of(root).plan().config


def test_the_pair_and_the_prompts_are_its_inputs(root: Path) -> None:
    plan = stage_of(root).plan()
    assert plan.inputs == {
        "target": root / "work/hf/hf",
        "draft": root / "work/draft-hf/hf",
        "prompts": root / "prompts.jsonl",
    }
    assert plan.processes == 1
    gated = stage_of(root, "worth.gates=['fast.speedup >= 1']").plan()
    assert replace(gated, config={}) == replace(plan, config={})
    assert gated.config == plan.config
