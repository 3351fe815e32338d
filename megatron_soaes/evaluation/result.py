"""What an evaluation of one model found: one JSON file, item by item.

Everything a later, paired comparison needs is in it, so that models are evaluated once each.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from megatron_soaes import files
from megatron_soaes.errors import UserError
from megatron_soaes.wording import unreadable

FORMAT_VERSION = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """Which weights were measured."""

    name: str
    path: str
    weights_sha256: str
    iteration: int | None = None


@dataclass(frozen=True)
class Measure:
    """One number and the outcome of every item it is the mean of."""

    scores: tuple[float, ...]
    unit: str
    """"%", "bits/byte", or what the harness left unsaid: ""."""
    binary: bool = False
    """Each score is 0 (wrong) or 100 (right)."""
    higher_is_better: bool = True
    weights: tuple[float, ...] | None = None
    """What an item counts, such as its bytes; all the same when None."""
    chances: tuple[float, ...] | None = None
    """What guessing scores on each item."""
    mean_of_nonempty: float | None = None
    """The mean without empty predictions, where a profile's tool has used that."""

    @property
    def value(self) -> float:
        """The (weighted) mean of the scores."""
        weights = self.weights or (1.0,) * len(self.scores)
        return math.fsum(map(operator.mul, self.scores, weights)) / math.fsum(weights)

    @property
    def chance(self) -> float | None:
        """What guessing scores; None where there is nothing to guess."""
        return math.fsum(self.chances) / len(self.chances) if self.chances else None

    def select(self, items: Sequence[int]) -> Measure:
        """The measure on some of its items."""
        return replace(
            self,
            scores=_pick(self.scores, items),
            weights=_pick(self.weights, items) if self.weights else None,
            chances=_pick(self.chances, items) if self.chances else None,
            mean_of_nonempty=None,
        )


@dataclass(frozen=True)
class Suite:
    """The items of one task file (or of one harness task) and all that was measured on them."""

    kind: str
    """"questions", "choices", "texts" or "lm_eval"."""
    data: str
    data_sha256: str
    ids: tuple[str, ...]
    measures: Mapping[str, Measure]
    """By "profile.metric"."""
    profiles: Mapping[str, str]
    """What each profile means."""
    versions: Mapping[str, str]
    """The packages the numbers depend on."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How answers were made: prompt, length, sampling. Only equal settings are compared."""
    sources: tuple[str, ...] = ()
    """The part of the suite an item belongs to; empty when it has no parts."""
    answers: tuple[str, ...] = ()
    """What the model wrote; empty where it wrote nothing."""
    unpaired: Mapping[str, float] = field(default_factory=dict)
    """Numbers that are no mean over items, by "profile.metric"; they cannot be compared."""

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError("a suite without items")
        for name, measure in self.measures.items():
            optional = (measure.weights, measure.chances)
            columns = [measure.scores, *(column for column in optional if column is not None)]
            if any(len(column) != len(self.ids) for column in columns):
                raise ValueError(f"{name} has not one score for each of {len(self.ids)} items")
            if not all(math.isfinite(x) for column in columns for x in column):
                raise ValueError(f"{name} has a score that is not finite")
        for name, value in self.unpaired.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} is not finite")
        for column in filter(None, (self.sources, self.answers)):
            if len(column) != len(self.ids):
                raise ValueError(f"{len(column)} sources or answers for {len(self.ids)} items")

    def parts(self) -> Iterator[tuple[str, Suite]]:
        """("", the whole suite), then (source, its items) where there is more than one source."""
        yield "", self
        names = sorted(set(self.sources))
        for name in names if len(names) > 1 else []:
            yield name, self._select([i for i, s in enumerate(self.sources) if s == name])

    def _select(self, items: Sequence[int]) -> Suite:
        return replace(
            self,
            ids=_pick(self.ids, items),
            measures={name: measure.select(items) for name, measure in self.measures.items()},
            sources=_pick(self.sources, items),
            answers=_pick(self.answers, items) if self.answers else (),
            unpaired={},
        )


@dataclass(frozen=True)
class EvaluationResult:
    """One model on all its suites."""

    model: Model
    suites: Mapping[str, Suite]
    seeds: Mapping[str, int] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the JSON file atomically."""
        files.write_json(path, {"format_version": FORMAT_VERSION, **asdict(self)})


def read_result(path: Path) -> EvaluationResult:
    """A result that `EvaluationResult.write` wrote. Raises UserError when it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version is not {FORMAT_VERSION}")
        suites = {name: _suite(entry) for name, entry in content.pop("suites").items()}
        return EvaluationResult(Model(**content.pop("model")), suites, **content)
    except OSError as error:
        raise UserError(
            path, unreadable(error), "the result of an evaluation", "Correct the path."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            path,
            f"no evaluation result ({type(error).__name__}: {error})",
            "the JSON file that an evaluation writes",
            "Name that file or evaluate the model again.",
        ) from None


def _suite(entry: dict[str, Any]) -> Suite:
    measures = {name: _measure(fields) for name, fields in entry["measures"].items()}
    columns: dict[str, Any] = {name: tuple(entry[name]) for name in ("ids", "sources", "answers")}
    return Suite(**{**entry, **columns, "measures": measures})


def _measure(fields: dict[str, Any]) -> Measure:
    columns: dict[str, Any] = {
        name: None if fields[name] is None else tuple(map(float, fields[name]))
        for name in ("scores", "weights", "chances")
    }
    return Measure(**{**fields, **columns})


def _pick(column: tuple[T, ...], items: Sequence[int]) -> tuple[T, ...]:
    return tuple(column[i] for i in items)
