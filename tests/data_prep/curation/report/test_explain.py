"""Every name that the blocks give has a sentence of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from data_prep.curation.boilerplate import NOTICES, Boilerplate
from data_prep.curation.language import LanguageRule
from data_prep.curation.normalise import Normalise
from data_prep.curation.pii.patterns import Kind
from data_prep.curation.pipeline.web import NO_TEXT
from data_prep.curation.quality_en import QualityEn
from data_prep.curation.quality_zh import QualityZh
from data_prep.curation.repetition import Repetition
from data_prep.curation.report.explain import (
    BLOCKS,
    EDITS,
    MASKED,
    OF_YOUR_OWN,
    REASONS,
    SCORES,
    SKIPPED,
    explain,
)
from data_prep.curation.script_policy import ScriptPolicy
from data_prep.curation.selection.scores import NAMES, Selection
from data_prep.curation.spam import TRADES
from data_prep.documents import Reason


def named(function: Callable[..., Any]) -> set[str]:
    """The names between backquotes in a docstring that look like reasons."""
    return set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", function.__doc__ or ""))


@pytest.mark.parametrize(
    "rule", [QualityZh, QualityEn, Repetition, Boilerplate, LanguageRule, ScriptPolicy, Selection]
)
def test_reasons_of_the_rules(rule: Any) -> None:
    names = named(rule.reason)
    assert names
    assert names <= set(REASONS)


def test_other_reasons() -> None:
    assert {f"spam_{trade}" for trade in TRADES} <= set(REASONS)
    assert {"empty", "copy", "near_copy", "evaluation_overlap"} <= set(REASONS)


def test_kinds_of_edits_masks_scores_and_skipped_lines() -> None:
    assert (set(NOTICES) | {"blanks", "composed", "traditional_to_simplified"}) <= set(EDITS)
    assert named(Normalise.apply) <= set(EDITS)
    assert set(MASKED) == {str(kind) for kind in Kind}
    assert set(SCORES) == set(NAMES)
    assert set(SKIPPED) == {str(reason) for reason in Reason} | {"blank", NO_TEXT}


def test_a_name_of_a_teams_own_is_not_made_up() -> None:
    assert explain("house_style", REASONS) == OF_YOUR_OWN
    assert explain("read", BLOCKS) != OF_YOUR_OWN
