"""The three scores of a document and their explanations, and what a selection makes of them.

Scores are stored beside a document, under `scores`; nothing is dropped by them. A `Selection` says
later why a document would go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from data_prep.curation.selection.credibility import Credibility, SourceList, read_source_list
from data_prep.curation.selection.fields import Document
from data_prep.curation.selection.importance import (
    AuthorityList,
    Importance,
    ImportanceSettings,
    judge_importance,
    read_authority_list,
)
from data_prep.curation.selection.relevance import Relevance, RelevanceModel, load_model
from megatron_soaes.errors import UserError

NAMES = ("credibility", "relevance", "importance")
CONDITION = re.compile(r"\s*(\w+)\s*>=\s*(\d*\.?\d+)\s*")


@dataclass(frozen=True)
class Settings:
    """What documents are scored by."""

    sources: SourceList
    authorities: AuthorityList
    model: RelevanceModel
    importance: ImportanceSettings

    @classmethod
    def read(cls, sources: Path, authorities: Path, model: Path, as_of: date) -> Settings:
        """From the files that experts keep; weights are the defaults. Raises UserError."""
        return cls(
            read_source_list(sources),
            read_authority_list(authorities),
            load_model(model),
            ImportanceSettings(as_of),
        )


@dataclass(frozen=True)
class Explanations:
    """Why each score is what it is."""

    credibility: Credibility
    relevance: Relevance
    importance: Importance


@dataclass(frozen=True)
class Scores:
    """Three scores from 0 to 1 and their explanations."""

    credibility: float
    relevance: float
    importance: float
    explanations: Explanations

    def to_json(self) -> dict[str, Any]:
        """What is stored under a document's `scores`: the three numbers and `explanations`."""
        return asdict(self)


def score_documents(documents: Sequence[Document], settings: Settings) -> list[Scores]:
    """Score each document: its `text`, and where it has them `url`, `source`, `date`,
    `cluster_size`, which may also stand in its `metadata`.

    Many at once are faster, above all where they are short.
    """
    relevances = settings.model.judge([document["text"] for document in documents])
    scores = []
    for document, relevance in zip(documents, relevances, strict=True):
        credibility = settings.sources.judge(document)
        importance = judge_importance(document, settings.authorities, settings.importance)
        scores.append(
            Scores(
                credibility.score,
                relevance.score,
                importance.score,
                Explanations(credibility, relevance, importance),
            )
        )
    return scores


@dataclass(frozen=True)
class Selection:
    """The least value of each score that a document must have to stay."""

    credibility: float = 0.0
    relevance: float = 0.0
    importance: float = 0.0

    def __post_init__(self) -> None:
        for name in NAMES:
            minimum = getattr(self, name)
            if not 0 <= minimum <= 1:
                raise _no_selection(f"{name}>={minimum}", str(minimum))

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Read `credibility>=0.5 and relevance>=0.6`; a score that is not named has no minimum.

        Raises UserError for anything else, for a score named twice and a minimum above 1.
        """
        minimums: dict[str, float] = {}
        for part in re.split(r"\band\b", text):
            condition = CONDITION.fullmatch(part)
            if not condition or condition[1] not in NAMES:
                raise _no_selection(text, repr(part.strip()))
            if condition[1] in minimums:
                raise _no_selection(text, f"{condition[1]} a second time")
            minimums[condition[1]] = float(condition[2])
        return cls(**minimums)

    def __str__(self) -> str:
        minimums = [(name, getattr(self, name)) for name in NAMES]
        named = [f"{name}>={minimum:g}" for name, minimum in minimums if minimum]
        return " and ".join(named) or "everything"

    def margin(self, scores: Mapping[str, Any]) -> float:
        """How far the score that is closest to failing lies above its minimum; below 0: it fails.

        `scores` are as `Scores.to_json` stores them. A score without a minimum cannot fail.
        """
        margins = [scores[name] - minimum for name in NAMES if (minimum := getattr(self, name)) > 0]
        return min(margins, default=1.0)

    def reason(self, scores: Mapping[str, Any]) -> str | None:
        """Why a document goes, by `scores` as `Scores.to_json` stores them: `low_credibility`,
        `low_relevance`, `low_importance`, the first that is so; None for one that stays.
        """
        for name in NAMES:
            if scores[name] < getattr(self, name):
                return f"low_{name}"
        return None


def _no_selection(text: str, found: str) -> UserError:
    expected = f"minimums from 0 to 1 of {', '.join(NAMES)}, each once, joined by 'and'"
    fix = "Write it as 'credibility>=0.5 and relevance>=0.6'."
    return UserError(f"selection '{text}'", found, expected, fix)
