"""What SFT stages train on: passes, replay, and a control with the very same samples."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.data.blend import Mixture
from megatron_soaes.data.conversations import Packs
from megatron_soaes.data.indexed import TokenizerFacts
from megatron_soaes.recipe.schema import AnyTrainingStage, Recipe
from megatron_soaes.stages.datasets import Reading, held_out_sets
from megatron_soaes.stages.mixtures import packing_reports, training_mixture
from tests.data.material import (
    EOD,
    VOCABULARY,
    numbered_documents,
    random_conversations,
    write_conversations,
    write_dataset,
)

LENGTH = 32
BATCH = 4
SFT: dict[str, Any] = {"kind": "sft", "sequence_length": LENGTH, "global_batch_size": BATCH}
REPLAY = {"weights": {"chat": 3.0, "documents": 1.0}, "share": 0.2}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Two sft stages by passes, the second with replay, and their control."""
    write_conversations(tmp_path / "chat", random_conversations(1, 90, LENGTH))
    topics = ["law" if i % 2 else "finance" for i in range(60)]
    write_conversations(tmp_path / "expert", random_conversations(2, 60, LENGTH), topics)
    write_dataset(tmp_path / "documents", numbered_documents(200))
    return Recipe.model_validate(
        {
            "version": 1,
            "name": "curriculum",
            "workdir": tmp_path / "work",
            "models": {"target": {"source": tmp_path}},
            "data": {
                "datasets": {
                    "chat": {"indexed_conversations": tmp_path / "chat"},
                    "expert": {"indexed_conversations": tmp_path / "expert", "holdout": 0.2},
                    "documents": {"indexed": tmp_path / "documents"},
                },
                "blends": {
                    "first": {"weights": {"chat": 1.0}},
                    "second": {"weights": {"expert": 1.5}, "replay": REPLAY},
                },
            },
            "stages": [
                {**SFT, "name": "sft1", "blend": "first", "epochs": 1},
                {**SFT, "name": "sft2", "blend": "second", "epochs": 2},
                {**SFT, "name": "single", "kind": "sft_single_stage", "of": ["sft1", "sft2"]},
            ],
        }
    )


def reading(recipe: Recipe) -> Reading:
    return Reading(recipe, TokenizerFacts(VOCABULARY, EOD, "0" * 64), LENGTH)


def mixture_of(recipe: Recipe, name: str) -> tuple[Mixture, int]:
    (stage,) = (one for one in recipe.stages if one.name == name)
    assert isinstance(stage, AnyTrainingStage)
    return training_mixture(reading(recipe), stage)


def samples(mixture: Mixture) -> Counter[tuple[bytes, int]]:
    positions = range(len(mixture.source_ids))
    return Counter((mixture[p].tokens.tobytes(), mixture[p].source) for p in positions)


def test_a_pass_gives_every_pack_once_and_fills_up_the_last_batch(recipe: Recipe) -> None:
    mixture, steps = mixture_of(recipe, "sft1")
    report = packing_reports(reading(recipe), recipe.stages[0])["chat"]  # type: ignore[arg-type]
    found = samples(mixture)
    assert steps == math.ceil(report["packs"] / BATCH)
    assert len(found) == report["packs"]
    assert found.total() - report["packs"] == steps * BATCH - report["packs"] < BATCH


def test_passes_count_times_the_weight_and_replay_comes_on_top(recipe: Recipe) -> None:
    mixture, steps = mixture_of(recipe, "sft2")
    packs = packing_reports(reading(recipe), recipe.stages[1])["expert"]["packs"]  # type: ignore[arg-type]
    assert steps == math.ceil(3 * packs / 0.8 / BATCH)
    by_source = Counter(mixture.source_ids.tolist())
    total = steps * BATCH
    assert by_source[1] == pytest.approx(0.8 * total, abs=1)
    assert by_source[0] == pytest.approx(0.15 * total, abs=1)
    assert by_source[2] == pytest.approx(0.05 * total, abs=1)
    passes = Counter(tokens for (tokens, source), n in samples(mixture).items() if source == 1)
    assert len(passes) == packs


def test_the_control_has_exactly_the_samples_and_the_steps_of_both(recipe: Recipe) -> None:
    first, steps1 = mixture_of(recipe, "sft1")
    second, steps2 = mixture_of(recipe, "sft2")
    single, steps = mixture_of(recipe, "single")
    assert steps == steps1 + steps2
    assert samples(single) == samples(first) + samples(second)


def test_held_out_conversations_are_told_by_source(recipe: Recipe) -> None:
    sets = held_out_sets(reading(recipe), ["expert"], "refuse")
    assert list(sets) == ["expert", "expert/finance", "expert/law"]
    counts = {
        name: found.report.conversations for name, found in sets.items() if isinstance(found, Packs)
    }
    assert counts == {"expert": 12, "expert/finance": 6, "expert/law": 6}


def test_what_was_dropped_is_reported(recipe: Recipe) -> None:
    text = json.loads(recipe.model_dump_json())
    text["stages"][0] |= {"sequence_length": 16, "packing": {"too_long": "drop"}}
    short = Recipe.model_validate(text)
    report = packing_reports(Reading(short, reading(recipe).tokenizer, 16), short.stages[0])  # type: ignore[arg-type]
    assert report["chat"]["dropped"] > 0
    assert report["chat"]["conversations"] + report["chat"]["dropped"] == 90
