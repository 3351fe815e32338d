"""What gates speak about: dotted metrics of any stage, and the short names of three kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_soaes import files
from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.compare import compare
from megatron_soaes.evaluation.result import EvaluationResult, Measure, Model, Suite
from megatron_soaes.evaluation.statistics import to_json
from megatron_soaes.pipeline.gates import hold_to_gates, measured
from megatron_soaes.pipeline.manifest import Manifest, Output
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import Recipe

ITEMS = 4000
RECIPE = """
version: 1
name: gated
workdir: work
models: {target: {source: model}, draft: {source: model}}
stages:
  - {name: exam, kind: evaluate, checkpoints: [import, cpt, sft]}
  - {name: hf, kind: export}
  - name: distil
    kind: distill
    captured: capture
    steps: 1
    sequence_length: 32
    global_batch_size: 1
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def gated(recipe_file: Path, stage: str, gate: str) -> Recipe:
    return load_recipe(recipe_file, [f"{stage}.gates=['{gate}']"])


def made(stage: str, kind: str, metrics: Mapping[str, Any], **fields: Any) -> Manifest:
    """The record of a finished stage."""
    empty: dict[str, Any] = {"config": {}, "inputs": {}, "outputs": {}}
    return Manifest(
        **{**empty, **fields}, stage=stage, kind=kind, metrics=dict(metrics), code={}, versions={},
        device="CPU", processes=1, started="2026-01-01T00:00:00", finished="2026-01-01T00:00:01",
    )  # fmt: skip


def suite(kind: str, measure: str, scores: Sequence[float], **fields: Any) -> Suite:
    return Suite(
        kind, f"{kind}.jsonl", "d" * 64, tuple(map(str, range(len(scores)))),
        {measure: Measure(tuple(scores), "", **fields)}, {}, {},
    )  # fmt: skip


def right(count: int, items: int = ITEMS) -> Suite:
    """Multiple choice with four options: the first `count` of `items` are answered right."""
    scores = [100.0 * (i < count) for i in range(items)]
    return suite("choices", "choice.acc", scores, binary=True, chances=(25.0,) * items)


def prose(bits: float) -> Suite:
    """Texts of about so many bits a byte."""
    noise = np.random.default_rng(1).normal(0, 0.01, ITEMS)
    return suite("texts", "text.bits_per_byte", (bits + noise).tolist(), higher_is_better=False)


def rouge(score: float) -> Suite:
    return suite("questions", "swift.rouge1", [score] * ITEMS)


def evaluated(folder: Path, results: Mapping[str, Mapping[str, Suite]]) -> Manifest:
    """An evaluate stage that found `results` by checkpoint, the base first."""
    paths = [folder / f"{name}.json" for name in results]
    for path, suites in zip(paths, results.values(), strict=True):
        EvaluationResult(Model(path.stem, path.stem, "0" * 64), suites).write(path)
    first = next(iter(results.values()))
    outputs = {}
    if len(paths) > 1:
        comparison = folder / "comparison.json"
        files.write_json(comparison, to_json(compare(paths)))
        outputs = {"comparison.json": Output(str(comparison), "0" * 64, {"": 1})}
    return made(
        "exam", "evaluate", {name: {} for name in results},
        config={"checkpoints": list(results)}, outputs=outputs,
        inputs={f"{one.kind}/{name}": {} for name, one in first.items()},
    )  # fmt: skip


def test_retained_is_the_least_share_of_what_is_general(tmp_path: Path) -> None:
    manifest = evaluated(
        tmp_path,
        {
            "import": {"mini": right(3000), "prose": prose(1.0), "exam": rouge(50)},
            "cpt": {"mini": right(2970), "prose": prose(1.0), "exam": rouge(80)},
            "sft": {"mini": right(2999), "prose": prose(1.25), "exam": rouge(10)},
        },
    )
    found = measured(manifest)

    assert found.unknown == {}
    assert found.metrics["cpt.retained"] == pytest.approx(0.99)
    # Fewer bits are better; what became of the domain's questions does not count.
    assert found.metrics["sft.retained"] == pytest.approx(0.8, abs=1e-3)
    assert found.metrics["retained"] == found.metrics["sft.retained"]


def test_a_gate_on_retained_stops_with_the_numbers(recipe_file: Path, tmp_path: Path) -> None:
    manifest = evaluated(tmp_path, {"import": {"mini": right(3000)}, "sft": {"mini": right(2700)}})

    hold_to_gates(gated(recipe_file, "exam", "retained >= 0.9"), manifest, tmp_path)
    with pytest.raises(UserError, match=r"exam, gate 'retained >= 0.995': found retained = 0.9;"):
        hold_to_gates(gated(recipe_file, "exam", "retained >= 0.995"), manifest, tmp_path)


@pytest.mark.parametrize(
    ("base", "new", "reason"),
    [
        (right(1010), right(1010), r"not measurable \(the base has 25\.2, guessing 25\.0\)"),
        (right(9, 12), right(9, 12), r"not shown \(1 on 12 items, with a margin of 2%\)"),
        (rouge(50), rouge(50), "nothing of general ability was measured"),
    ],
)
def test_what_is_not_known_passes_no_gate_and_says_why(
    recipe_file: Path, tmp_path: Path, base: Suite, new: Suite, reason: str
) -> None:
    manifest = evaluated(tmp_path, {"import": {"mini": base}, "sft": {"mini": new}})

    for name in ("retained", "sft.retained"):
        with pytest.raises(UserError, match=rf"{name} is not known: .*{reason}"):
            hold_to_gates(gated(recipe_file, "exam", f"{name} >= 0.1"), manifest, tmp_path)


def test_one_checkpoint_alone_retains_nothing_known(recipe_file: Path, tmp_path: Path) -> None:
    manifest = evaluated(tmp_path, {"sft": {"mini": right(3000)}})

    with pytest.raises(UserError, match="retained is not known: only a stage with two checkpoints"):
        hold_to_gates(gated(recipe_file, "exam", "retained >= 0.1"), manifest, tmp_path)


def test_acceptance_is_the_least_of_the_held_out_sets(recipe_file: Path, tmp_path: Path) -> None:
    after = {"chat": {"alpha": 0.7, "greedy_match": 0.9}, "prose": {"alpha": 0.55}}
    manifest = made("distil", "distill", {"acceptance": {"before": {}, "after": after}})

    assert measured(manifest).metrics["acceptance"] == 0.55
    assert measured(manifest).metrics["acceptance.after.chat.alpha"] == 0.7
    hold_to_gates(gated(recipe_file, "distil", "acceptance >= 0.5"), manifest, tmp_path)
    with pytest.raises(UserError, match=r"found acceptance = 0.55; expected >= 0.6"):
        hold_to_gates(gated(recipe_file, "distil", "acceptance >= 0.6"), manifest, tmp_path)


def test_acceptance_without_held_out_sets_is_not_known(recipe_file: Path, tmp_path: Path) -> None:
    manifest = made("distil", "distill", {"iteration": 1})

    with pytest.raises(UserError, match=r"acceptance is not known: .*validation\.sets"):
        hold_to_gates(gated(recipe_file, "distil", "acceptance >= 0.6"), manifest, tmp_path)


def test_logit_error_is_what_the_export_measured(recipe_file: Path, tmp_path: Path) -> None:
    manifest = made("hf", "export", {"tensors": 3, "logit_error": 2e-5})

    hold_to_gates(gated(recipe_file, "hf", "logit_error <= 1e-4"), manifest, tmp_path)
    with pytest.raises(UserError, match=r"found logit_error = 2e-05; expected <= 1e-05"):
        hold_to_gates(gated(recipe_file, "hf", "logit_error <= 1e-5"), manifest, tmp_path)


def test_short_names_belong_to_their_kind_of_stage(recipe_file: Path, tmp_path: Path) -> None:
    manifest = made("hf", "export", {"logit_error": 0.0})

    with pytest.raises(UserError, match="no metric retained"):
        hold_to_gates(gated(recipe_file, "hf", "retained >= 0.9"), manifest, tmp_path)
