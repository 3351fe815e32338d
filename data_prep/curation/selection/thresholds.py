"""What each cut-off would keep and lose, told before anything is dropped."""

from __future__ import annotations

import hashlib
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data_prep.curation.selection.fields import (
    UNKNOWN,
    Document,
    field_of,
    text_field,
    title_of,
)
from data_prep.curation.selection.scores import NAMES, Selection
from megatron_soaes.errors import UserError

GRID = tuple(step / 10 for step in range(1, 10))
SAMPLES = 5
BAND = 0.05
"""How far from a cut-off a document may lie to be shown as just above or just below it."""


@dataclass(frozen=True)
class Amount:
    """Documents, characters, and tokens where every document says how many it has."""

    documents: int
    characters: int
    tokens: int | None


@dataclass(frozen=True)
class Share:
    """What a selection keeps of a source or of a language; `share` is that of characters."""

    name: str
    all: Amount
    kept: Amount
    share: float


@dataclass(frozen=True, order=True)
class Sample:
    """A document near a cut-off. Samples are drawn, and shown, in the order of a hash of it."""

    order: str
    id: str
    source: str
    title: str
    """Or the start of the text."""
    margin: float
    """Of the score that is closest to failing, from its minimum."""


@dataclass(frozen=True)
class Effect:
    """What one selection would do."""

    selection: str
    kept: Amount
    share: float
    """Of characters."""
    by_source: tuple[Share, ...]
    """The largest first."""
    by_language: tuple[Share, ...]
    just_above: tuple[Sample, ...]
    """Kept, within `BAND` of the cut-off."""
    just_below: tuple[Sample, ...]
    """Lost, within `BAND` of the cut-off."""


@dataclass(frozen=True)
class ThresholdReport:
    """The effect of every selection on the same documents."""

    all: Amount
    effects: tuple[Effect, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class _Group:
    """Documents that the same selections keep, of one source and language."""

    kept_by: tuple[bool, ...]
    source: str
    language: str


@dataclass
class _Sum:
    documents: int = 0
    characters: int = 0
    tokens: int = 0
    without_tokens: int = 0

    def add(self, other: _Sum) -> None:
        self.documents += other.documents
        self.characters += other.characters
        self.tokens += other.tokens
        self.without_tokens += other.without_tokens

    def amount(self) -> Amount:
        return Amount(self.documents, self.characters, None if self.without_tokens else self.tokens)


@dataclass
class _Samples:
    """The `SAMPLES` documents of the smallest hashes among those shown: a sample that depends on
    the documents only, not on their order.
    """

    chosen: list[Sample] = field(default_factory=list)

    def offer(self, document: Document, margin: float) -> None:
        order = _hash(document)
        if len(self.chosen) == SAMPLES and order > self.chosen[-1].order:
            return
        source = text_field(document, "source") or UNKNOWN
        title = title_of(document)
        insort(self.chosen, Sample(order, str(document.get("id")), source, title, round(margin, 4)))
        del self.chosen[SAMPLES:]


def grid_and(selections: Sequence[Selection]) -> list[Selection]:
    """Each cut-off of `GRID` for each score by itself, then the combinations asked for."""
    single = [Selection(**{name: minimum}) for name in NAMES for minimum in GRID]
    return [*single, *selections]


def threshold_report(
    documents: Iterable[Document], selections: Sequence[Selection]
) -> ThresholdReport:
    """What each selection keeps of the documents, which are read once and not held.

    A document has `id`, `text` and `scores` as `Scores.to_json` gives them; `source`, `language`,
    `title` and `tokens` (a count) where they are known. All but `id` and `text` may stand in its
    `metadata`. Raises UserError for a document without scores.
    """
    sums: dict[_Group, _Sum] = {}
    above = [_Samples() for _ in selections]
    below = [_Samples() for _ in selections]
    for document in documents:
        margins = _margins(document, selections)
        for number, margin in enumerate(margins):
            if -BAND <= margin <= BAND:
                (above if margin >= 0 else below)[number].offer(document, margin)
        group = _Group(
            tuple(margin >= 0 for margin in margins),
            text_field(document, "source") or UNKNOWN,
            text_field(document, "language") or UNKNOWN,
        )
        tokens = field_of(document, "tokens")
        one = _Sum(1, len(document["text"]), tokens or 0, int(tokens is None))
        sums.setdefault(group, _Sum()).add(one)
    effects = (
        _effect(str(selection), number, sums, above[number], below[number])
        for number, selection in enumerate(selections)
    )
    return ThresholdReport(_total(sums.values()).amount(), tuple(effects))


def _margins(document: Document, selections: Sequence[Selection]) -> list[float]:
    scores = field_of(document, "scores")
    if not isinstance(scores, dict) or not all(
        isinstance(scores.get(name), int | float) for name in NAMES
    ):
        raise UserError(
            f"document {document.get('id')}: scores", repr(scores)[:60],
            f"numbers for {', '.join(NAMES)}", "Score the documents first.",
        )  # fmt: skip
    return [selection.margin(scores) for selection in selections]


def _effect(
    selection: str, number: int, sums: dict[_Group, _Sum], above: _Samples, below: _Samples
) -> Effect:
    total = _total(sums.values())
    kept = _total(amount for group, amount in sums.items() if group.kept_by[number])
    return Effect(
        selection=selection,
        kept=kept.amount(),
        share=_share(kept, total),
        by_source=_shares([(g.source, g.kept_by[number], amount) for g, amount in sums.items()]),
        by_language=_shares(
            [(g.language, g.kept_by[number], amount) for g, amount in sums.items()]
        ),
        just_above=tuple(above.chosen),
        just_below=tuple(below.chosen),
    )


def _shares(amounts: list[tuple[str, bool, _Sum]]) -> tuple[Share, ...]:
    everything: dict[str, _Sum] = {}
    kept: dict[str, _Sum] = {}
    for name, stays, amount in amounts:
        everything.setdefault(name, _Sum()).add(amount)
        kept.setdefault(name, _Sum()).add(amount if stays else _Sum())
    names = sorted(everything, key=lambda name: (-everything[name].characters, name))
    return tuple(
        Share(
            name,
            everything[name].amount(),
            kept[name].amount(),
            _share(kept[name], everything[name]),
        )
        for name in names
    )


def _total(sums: Iterable[_Sum]) -> _Sum:
    total = _Sum()
    for each in sums:
        total.add(each)
    return total


def _share(part: _Sum, whole: _Sum) -> float:
    return part.characters / whole.characters if whole.characters else 0.0


def _hash(document: Document) -> str:
    named = f"{document.get('id')}\n{document['text']}"
    return hashlib.blake2b(named.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
