"""The card of an exported model: from manifests to Markdown."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from megatron_soaes.export.model_card import model_card
from megatron_soaes.recipe.shapes import ModelShape

SHAPE = ModelShape(
    "qwen2", 2, 64, 8, 2, 8, 96, 320, 256, False, True, False, 1e-6, 10000.0, None
)  # fmt: skip


def manifest(stage: str, kind: str, **parts: Any) -> dict[str, Any]:
    """A manifest as a stage leaves it; `parts` replace what matters."""
    return {
        "format_version": 1,
        "stage": stage,
        "kind": kind,
        "config": {},
        "inputs": {},
        "outputs": {},
        "metrics": {},
        "code": {"version": "0.1.0", "sha256": "c0de" * 16},
        "versions": {"torch": "2.13.0"},
        "device": "8 x H200",
        "processes": 8,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-02T00:00:00+00:00",
        **parts,
    }


def training(stage: str, kind: str, after: str, **metrics: Any) -> dict[str, Any]:
    """The manifest of a training stage that saw 640 samples of `policy`."""
    return manifest(
        stage,
        kind,
        config={
            "after": after,
            "model": "target",
            "global_batch_size": 8,
            "sequence_length": 4096,
            "optimizer": {"lr": 1e-5},
            "precision": {"dtype": "bf16"},
        },
        inputs={"data/policy.bin": {"path": "/lustre/secret/policy.bin", "hash": "da7a" * 16}},
        metrics={
            "consumed_samples": {"policy": 640},
            "iteration": 80,
            "trained_tokens": 2_000_000,
            **metrics,
        },
    )


IMPORT = manifest(
    "import-target",
    "import",
    inputs={"hf": {"path": "/lustre/secret/Qwen2.5-7B", "hash": "ba5e" * 16}},
)
PREPARED = manifest("preprocess-policy", "preprocess", metrics={"documents": 1234, "tokens": 56789})
CPT = training("cpt", "cpt", "import", validation={"policy_valid": {"perplexity": 2.5}})
SFT = training(
    "sft", "sft", "cpt@best", packing={"policy": {"dropped": 3, "truncated": 0}}, skipped_steps=2
)
EVALUATION = manifest(
    "evaluation",
    "evaluate",
    metrics={
        "import": {"exam": {"rouge1": 20.0}},
        "sft": {"exam": {"rouge1": 35.5}, "held": {"loss": 1.25, "tokens": 100}},
    },
)
ALL = [EVALUATION, SFT, PREPARED, CPT, IMPORT]


def test_the_front_matter_is_what_a_hub_reads() -> None:
    _, front, _ = model_card("soe-7b", SHAPE, ALL, "sft").split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }


def test_the_stages_stand_in_the_order_in_which_they_trained() -> None:
    card = model_card("soe-7b", SHAPE, ALL, "sft")
    assert "# soe-7b\n\nA qwen2 model" in card
    assert "trained from `Qwen2.5-7B` (sha256 ba5eba5eba5e)" in card
    cpt = "| cpt | cpt | policy 640 | 80 | 2,000,000 | 8 x 4096 | 1e-05 | bf16 |"
    assert card.index(cpt) < card.index("| sft | sft | policy 640 |")
    assert "| policy | 1,234 documents | 56,789 | da7ada7ada7a |" in card
    assert "8 x H200 | 0.1.0 (c0dec0dec0de) | torch 2.13.0 |" in card


def test_measures_stand_beside_the_base() -> None:
    card = model_card("soe-7b", SHAPE, ALL, "sft")
    assert "| evaluation | exam rouge1 | 20 | 35.5 |" in card
    assert "| evaluation | held loss | - | 1.25 |" in card
    assert "held tokens" not in card


def test_limits_follow_from_what_happened() -> None:
    card = model_card("soe-7b", SHAPE, ALL, "sft")
    assert "sequences of at most 4,096 tokens" in card
    assert "sft: 3 conversations of policy were dropped as too long." in card
    assert "were truncated" not in card
    assert "sft: 2 steps were skipped" in card
    assert "No evaluation stage" not in card


def test_without_an_evaluation_the_last_validation_is_shown() -> None:
    card = model_card("soe-7b", SHAPE, [IMPORT, CPT], "cpt")
    assert "| policy_valid | 2.5 |" in card
    assert "No evaluation stage has measured these weights." in card
    assert "| policy | prepared outside of the run | - | da7ada7ada7a |" in card


def test_a_converted_model_says_so() -> None:
    card = model_card("copy", SHAPE, [IMPORT], "import")
    assert "converted from `Qwen2.5-7B`" in card
    assert "It was converted, not trained." in card
    assert "Nothing was measured." in card


def test_it_tells_no_paths() -> None:
    assert "lustre" not in model_card("soe-7b", SHAPE, ALL, "sft")


def test_a_missing_stage_is_an_error() -> None:
    with pytest.raises(ValueError, match="no manifest of the stage cpt"):
        model_card("soe-7b", SHAPE, [SFT, IMPORT], "sft")
