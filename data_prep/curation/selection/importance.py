"""How much weight a document has in its field: who issued it, how new it is, how often it is told.

The score is the weighted mean of three parts, each from 0 to 1, which are kept beside it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_prep.curation.selection.credibility import Name, Score
from data_prep.curation.selection.fields import Document, field_of, text_field
from data_prep.curation.strict_yaml import read_strict, refuse
from megatron_soaes.errors import UserError

BODY = "{body}"
DATE = re.compile(
    r"(\d{4})(?:\s*[-/.年]\s*(\d{1,2})(?:\s*[-/.月]\s*(\d{1,2}))?|(\d{2})(\d{2})?)?(?!\d)"
)
"""Year; month and day after separators; month and day without."""
DAYS_OF_A_YEAR = 365.25


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NoAuthority(_Section):
    """What a document is worth whose issuing body is not listed."""

    score: Score


class Level(_Section):
    """Issuing bodies of the same authority."""

    name: Name
    score: Score
    bodies: Annotated[list[Name], Field(min_length=1)]
    """Regular expressions, each for whole names; case does not matter."""


class Head(_Section):
    """Where in a text its issuing body is looked for."""

    characters: Annotated[int, Field(ge=0)]
    """From the start of the text on."""
    forms: list[Name]
    """Regular expressions in which `{body}` stands for a body; `^` is the start of a line."""


class Authorities(_Section):
    """Issuing bodies as experts write them, and how a text names its own."""

    default: NoAuthority
    levels: list[Level]
    head: Head

    @model_validator(mode="after")
    def _patterns_are_patterns(self) -> Self:
        names: set[str] = set()
        for number, level in enumerate(self.levels):
            if level.name in names:
                refuse(("levels", number, "name"), level.name, "the name of an earlier level")
            names.add(level.name)
            for index, body in enumerate(level.bodies):
                _require_pattern(("levels", number, "bodies", index), body, _named([body]))
        for index, form in enumerate(self.head.forms):
            location = ("head", "forms", index)
            if form.count(BODY) != 1:
                refuse(location, form, f"a form holds {BODY} once")
            _require_pattern(location, form, form.replace(BODY, "body"))
        return self


@dataclass(frozen=True)
class Authority:
    """The level of a document's issuing body, and why."""

    score: float
    level: str | None
    """None where no listed body was found."""
    body: str | None
    """The name as it stands in the document."""
    field: str | None
    """`source` or `text`."""


class AuthorityList:
    """Levels of issuing bodies, ready to be asked."""

    def __init__(self, authorities: Authorities) -> None:
        self._unlisted = Authority(authorities.default.score, None, None, None)
        self._head = authorities.head.characters
        self._levels = []
        for level in sorted(authorities.levels, key=lambda level: -level.score):
            body = _named(level.bodies)
            forms = [
                re.compile(form.replace(BODY, body), re.IGNORECASE | re.MULTILINE)
                for form in authorities.head.forms
            ]
            self._levels.append((level, re.compile(body, re.IGNORECASE), forms))

    def judge(self, document: Document) -> Authority:
        """The highest level that the `source` names, or else that the head of the text names."""
        source = text_field(document, "source")
        for level, body, _ in self._levels:
            if source and body.fullmatch(source):
                return Authority(level.score, level.name, source, "source")
        head = document["text"][: self._head]
        for level, _, forms in self._levels:
            for form in forms:
                if found := form.search(head):
                    return Authority(level.score, level.name, found["body"], "text")
        return self._unlisted


def read_authority_list(path: Path) -> AuthorityList:
    """Read authorities. Raises UserError with the line and field of everything wrong in them."""
    return AuthorityList(read_strict(path, Authorities))


@dataclass(frozen=True)
class ImportanceSettings:
    """Weights of the three parts, and what each is measured against."""

    as_of: date
    """The day that ages are counted to; fixed, so that a score does not depend on when it is made.
    """
    authority: float = 0.5
    recency: float = 0.2
    duplicates: float = 0.3
    half_life: float = 5.0
    """Years after which recency has halved."""
    undated: float = 0.5
    """Recency of a document without a readable date, or with one after `as_of`."""
    full_cluster: int = 100
    """Copies, the document itself included, from which on more count for nothing."""

    def __post_init__(self) -> None:
        weights = (self.authority, self.recency, self.duplicates)
        if min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise _setting(f"weights {weights}", "none below 0, their sum above 0")
        if not 0 < self.half_life < math.inf:
            raise _setting(f"half_life {self.half_life}", "years above 0")
        if not 0 <= self.undated <= 1:
            raise _setting(f"undated {self.undated}", "a score from 0 to 1")
        if self.full_cluster < 2:
            raise _setting(f"full_cluster {self.full_cluster}", "at least 2 copies")


@dataclass(frozen=True)
class Recency:
    """How new a document is: halved every `half_life` years."""

    score: float
    date: str | None
    """The day that was read, ISO 8601; None where the score is that of undated documents."""
    found: str | None
    """The field as it stands; None where the document has no `date`."""


@dataclass(frozen=True)
class Duplicates:
    """log(size) / log(full_cluster), at most 1; a document without copies has 0."""

    score: float
    size: int


@dataclass(frozen=True)
class Importance:
    """The weighted mean of its parts."""

    score: float
    authority: Authority
    recency: Recency
    duplicates: Duplicates


def judge_importance(
    document: Document, authorities: AuthorityList, settings: ImportanceSettings
) -> Importance:
    """Importance by the fields `source`, `date`, `cluster_size` (missing: 1) and the text's head.

    Raises UserError for a `cluster_size` that is no count.
    """
    authority = authorities.judge(document)
    recency = judge_recency(field_of(document, "date"), settings)
    duplicates = _duplicates(document, settings.full_cluster)
    weights = (settings.authority, settings.recency, settings.duplicates)
    parts = (authority.score, recency.score, duplicates.score)
    mean = sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
    return Importance(min(1.0, mean), authority, recency, duplicates)


def judge_recency(found: object, settings: ImportanceSettings) -> Recency:
    """The recency of a `date` field: a date, or text that starts with one.

    `2024-05-01`, `2024/5/1`, `20240501`, `2024年5月1日` are read, as is a time after them. A month
    without a day counts from its first day, a year without a month from its first of January.
    """
    if found is None:
        return Recency(settings.undated, None, None)
    day = _day(str(found))
    if day is None or day > settings.as_of:
        return Recency(settings.undated, None, str(found))
    years = (settings.as_of - day).days / DAYS_OF_A_YEAR
    return Recency(0.5 ** (years / settings.half_life), day.isoformat(), str(found))


def _day(text: str) -> date | None:
    match = DATE.match(text.strip())
    if not match:
        return None
    year, *separated = match.groups()
    month, day = (separated[0] or separated[2], separated[1] or separated[3])
    try:
        return date(int(year), int(month or 1), int(day or 1))
    except ValueError:
        return None


def _duplicates(document: Document, full: int) -> Duplicates:
    size = field_of(document, "cluster_size")
    if size is None:
        size = 1
    if not isinstance(size, int) or size < 1:
        raise UserError(
            f"document {document.get('id')}: cluster_size", repr(size), "a count from 1 on",
            "Correct it, or leave it out where copies were not counted.",
        )  # fmt: skip
    return Duplicates(min(1.0, math.log(size) / math.log(full)), size)


def _named(bodies: list[str]) -> str:
    """One pattern for all of them, whose match is the group `body`."""
    return f"(?P<body>{'|'.join(f'(?:{body})' for body in bodies)})"


def _require_pattern(location: tuple[str | int, ...], value: str, pattern: str) -> None:
    try:
        if re.compile(pattern).fullmatch(""):
            refuse(location, value, "a pattern that matches nothing at all matches everywhere")
    except re.error as error:
        refuse(location, value, f"no regular expression: {error}")


def _setting(found: str, expected: str) -> UserError:
    return UserError("settings of importance", found, expected, "Correct it.")
