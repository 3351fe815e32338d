"""The arms of the distillation benchmark are sound stages that differ only in what they learn."""

from __future__ import annotations

from pathlib import Path

import yaml

from benchmarks.distillation import DIVERGENCES, with_arms
from megatron_soaes.recipe.check_arithmetic import check_arithmetic
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import CaptureStage, DistillStage

EXAMPLE = Path(__file__).parents[2] / "examples/rehearsal/recipe.yaml"


def test_arms_start_alike_and_last_as_long(tmp_path: Path) -> None:
    content = with_arms(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")), steps=123)
    derived = tmp_path / "arms.yaml"
    derived.write_text(yaml.safe_dump(content), encoding="utf-8")
    recipe = load_recipe(derived)
    assert check_arithmetic(recipe, {}) == []
    arms = [stage for stage in recipe.stages if isinstance(stage, DistillStage)]
    assert {(arm.after, arm.steps, arm.epochs) for arm in arms} == {("draft-sft-narrow", 123, None)}
    learnt = [(arm.captured, arm.objective.divergence, arm.objective.cross_entropy) for arm in arms]
    assert learnt[:2] == [("capture-original", "forward_kl", 1.0), ("capture", "forward_kl", 1.0)]
    assert learnt[2:] == [("capture", divergence, 0.0) for divergence in DIVERGENCES]
    captures = [stage for stage in recipe.stages if isinstance(stage, CaptureStage)]
    assert [stage.validation for stage in captures] == [["answers"]] * 2, "judged alike"
