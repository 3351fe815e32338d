"""What drafts are worth: acceptance by the target in training, speed when they decode together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from megatron_soaes.evaluation.statistics import Interval
from megatron_soaes.pipeline.manifest import Manifest
from megatron_soaes.pipeline.report.curves import validations
from megatron_soaes.recipe.schema import DistillStage, Recipe, SpeculateStage
from megatron_soaes.training.records import METRICS_FILE, read_records

RESAMPLED = "paired bootstrap of prompts and repeats"


@dataclass(frozen=True)
class Agreement:
    """How far a draft agrees with its target on a held-out set."""

    alpha: float
    """The expected share of its tokens that the target accepts."""
    tokens_per_pass: list[float]
    """Expected tokens of one pass of the target, by draft length from 1."""
    ideal_speedup: list[float]
    """By draft length from 1, if judging cost one pass."""
    greedy_match: float | None = None
    """Share of positions where both find the same token most likely; None of a sampled store."""


@dataclass(frozen=True)
class Acceptance:
    """A held-out set of a distillation, at its first and its newest validation."""

    stage: str
    held_out: str
    tokens: int
    before: Agreement
    after: Agreement


@dataclass(frozen=True)
class SpeedRow:
    """One draft length against plain decoding."""

    draft_length: int
    adaptive: bool
    seconds_per_token: float
    speedup: Interval
    """Over plain decoding in fast mode, the fastest plain decoding there is."""
    speedup_in_mode: Interval
    """Over plain decoding in the same mode."""
    ideal: float | None
    """The speedup in the mode at the measured acceptance and costs, if judging cost one pass."""
    expected: float | None
    acceptance_rate: float
    tokens_per_pass: float
    same_text: int | None
    """Prompts whose text is that of plain decoding; None for sampled text."""


@dataclass(frozen=True)
class Speed:
    """One mode of a comparison of plain and speculative decoding."""

    stage: str
    mode: str
    exact: bool
    prompts: int
    repeats: int
    target_dtype: str
    draft_dtype: str
    machine: dict[str, Any]
    plain_seconds_per_token: float
    rows: list[SpeedRow]
    go: bool
    reason: str


def read_acceptance(recipe: Recipe) -> list[Acceptance]:
    """Every held-out set of every distillation that has validated twice."""
    found = []
    for stage in recipe.stages:
        file = recipe.workdir / stage.name / METRICS_FILE
        if not isinstance(stage, DistillStage) or not file.exists():
            continue
        told = validations(read_records(file))
        if len(told) < 2:
            continue
        found += [
            Acceptance(
                stage.name, name, int(now["tokens"]), _agreement(told[0][name]), _agreement(now)
            )
            for name, now in told[-1].items()
            if "alpha" in now
        ]
    return found


def read_speeds(recipe: Recipe, manifests: Mapping[str, Manifest]) -> list[Speed]:
    """Every mode of every pair that was measured."""
    measured = [
        (stage, mode, recipe.workdir / stage.name / f"{mode}.json")
        for stage in recipe.stages
        if isinstance(stage, SpeculateStage) and stage.name in manifests
        for mode in manifests[stage.name].config["modes"]
    ]
    return [
        _speed(stage.name, mode, json.loads(file.read_text(encoding="utf-8")))
        for stage, mode, file in measured
        if file.is_file()
    ]


def _agreement(figures: Mapping[str, Any]) -> Agreement:
    known = {field.name for field in fields(Agreement)}
    return Agreement(**{name: value for name, value in figures.items() if name in known})


def _speed(stage: str, mode: str, found: Mapping[str, Any]) -> Speed:
    return Speed(
        stage=stage,
        mode=mode,
        exact=found["exact"],
        prompts=found["prompts"],
        repeats=found["repeats"],
        target_dtype=found["target_dtype"],
        draft_dtype=found["draft_dtype"],
        machine=found["machine"],
        plain_seconds_per_token=found["plain_seconds_per_token"],
        rows=[_speed_row(one) for one in found["lengths"]],
        go=found["recommendation"]["go"],
        reason=found["recommendation"]["reason"],
    )


def _speed_row(one: Mapping[str, Any]) -> SpeedRow:
    return SpeedRow(
        draft_length=one["draft_length"],
        adaptive=one["adaptive"],
        seconds_per_token=one["seconds_per_token"],
        speedup=Interval(**one["speedup"], method=RESAMPLED),
        speedup_in_mode=Interval(**one["speedup_in_mode"], method=RESAMPLED),
        ideal=one["ideal_speedup"],
        expected=one["expected_speedup"],
        acceptance_rate=one["acceptance"]["acceptance_rate"],
        tokens_per_pass=one["acceptance"]["acceptance_length_with_bonus"],
        same_text=one["identity"]["equal"] if one["identity"] else None,
    )
