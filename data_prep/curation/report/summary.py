"""The numbers of the report, added up from the accounts of the blocks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from data_prep.curation.pipeline.account import Account, Tally
from data_prep.curation.report.data import Block, Clusters, Dataset, Outcome
from data_prep.curation.report.explain import REASONS, explain

BLEND = "curated"
"""Name of the mixture in the recipe that is proposed."""


@dataclass(frozen=True)
class Amount:
    """A number of documents and their characters."""

    documents: int = 0
    characters: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.documents + other.documents, self.characters + other.characters)


@dataclass(frozen=True)
class Loss:
    """Documents dropped by a block for a reason, with the characters they came in with."""

    reason: str
    explanation: str
    dropped: Amount


@dataclass(frozen=True)
class Passage:
    """What went into a block and what came out of it."""

    name: str
    read: Amount
    kept: Amount
    losses: list[Loss]
    """Most documents first."""

    @property
    def dropped(self) -> Amount:
        """All losses."""
        return sum((loss.dropped for loss in self.losses), Amount())

    @property
    def removed_by_edits(self) -> int:
        """Characters that edits took out of documents that stayed; negative when they added."""
        return self.read.characters - self.kept.characters - self.dropped.characters


@dataclass(frozen=True)
class Source:
    """What became of the documents of a source, from the first block to the last."""

    name: str
    read: Amount
    kept: Amount
    reasons: dict[str, int]
    """Documents dropped, by reason, most first."""


@dataclass(frozen=True)
class Summary:
    """Everything that the report says in numbers."""

    read: Amount
    kept: Amount
    all_tokens: int | None
    """None when none were made."""
    funnel: list[Passage]
    sources: list[Source]
    """Most documents read first."""
    languages: dict[str, Amount]
    """Of what is left."""
    lengths_read: dict[int, int]
    """Documents by the power of two that their characters reach."""
    lengths_kept: dict[int, int]
    scores_given: dict[str, list[int]]
    """Documents by score, in equal steps from 0 to 1, in the block that gave the scores."""
    scores_kept: dict[str, list[int]]
    """The same of what is left."""
    edits: dict[str, int]
    """Places, by kind, most first; as are the two below."""
    masked: dict[str, int]
    skipped: dict[str, int]
    clusters: Clusters | None
    tokens: dict[str, int]
    blend: list[Dataset]


def summarise(outcome: Outcome, clusters: Clusters | None) -> Summary:
    """Add up an outcome whose sums were found right."""
    accounts = [block.account for block in outcome.blocks]
    first, last = accounts[0], accounts[-1]
    return Summary(
        read=_amount(first.totals("read")),
        kept=_amount(last.totals("kept")),
        all_tokens=sum(outcome.tokens.values()) if outcome.tokens else None,
        funnel=[_passage(block) for block in outcome.blocks],
        sources=_sources(accounts),
        languages={name: _amount(tally) for name, tally in _most_first(last.languages)},
        lengths_read=_by_length(first.lengths),
        lengths_kept=_by_length(last.lengths),
        scores_given=next((account.scores for account in accounts if account.scores), {}),
        scores_kept=last.scores,
        edits=_total(places for account in accounts for places in account.edits.values()),
        masked=_total(places for account in accounts for places in account.masked.values()),
        skipped=_total(account.skipped for account in accounts),
        clusters=clusters,
        tokens=outcome.tokens,
        blend=outcome.blend,
    )


def as_json(summary: Summary) -> dict[str, Any]:
    """The content of `report.json`."""
    fields = asdict(summary)
    totals = {
        "read": fields.pop("read"),
        "kept": fields.pop("kept"),
        "share_of_documents": _share(summary.kept.documents, summary.read.documents),
        "share_of_characters": _share(summary.kept.characters, summary.read.characters),
        "tokens": fields.pop("all_tokens"),
    }
    reasons = [
        {"block": passage.name, **asdict(loss)}
        for passage in summary.funnel
        for loss in passage.losses
    ]
    clusters = summary.clusters
    fields["clusters"] = clusters and {
        "clusters": clusters.number,
        "documents_removed": clusters.removed,
        "clusters_by_size": clusters.sizes,
        "largest": [cluster.model_dump() for cluster in clusters.largest],
    }
    fields["blend"] = [dataset.model_dump() for dataset in summary.blend]
    fields["recipe"] = recipe_data(summary.blend)
    # JSON has no numbers as keys; their order is that of text.
    return {"totals": totals, "reasons": reasons, **fields}


def recipe_data(blend: Iterable[Dataset]) -> dict[str, Any] | None:
    """`data` of a training recipe that mixes the datasets; None where none has tokens.

    A recipe takes no weight of 0, so that datasets without tokens are left out.
    """
    mixed = [dataset for dataset in blend if dataset.weight > 0]
    if not mixed:
        return None
    return {
        "datasets": {dataset.name: {"indexed": dataset.prefix} for dataset in mixed},
        "blends": {BLEND: {"weights": {d.name: float(f"{d.weight:.6g}") for d in mixed}}},
    }


def recipe_yaml(blend: Iterable[Dataset]) -> str | None:
    """The same as YAML, to be pasted into a recipe."""
    data = recipe_data(blend)
    if data is None:
        return None
    return yaml.safe_dump({"data": data}, sort_keys=False, allow_unicode=True, width=math.inf)


def _passage(block: Block) -> Passage:
    account = block.account
    dropped: dict[str, Amount] = {}
    for reasons in account.dropped.values():
        for reason, tally in reasons.items():
            dropped[reason] = dropped.get(reason, Amount()) + _amount(tally)
    losses = [Loss(reason, explain(reason, REASONS), gone) for reason, gone in dropped.items()]
    losses.sort(key=lambda loss: (-loss.dropped.documents, loss.reason))
    read, kept = _amount(account.totals("read")), _amount(account.totals("kept"))
    return Passage(block.name, read, kept, losses)


def _sources(accounts: list[Account]) -> list[Source]:
    reasons: dict[str, Counter[str]] = {}
    for account in accounts:
        for source, dropped in account.dropped.items():
            counts = reasons.setdefault(source, Counter())
            counts.update({reason: documents for reason, (documents, _) in dropped.items()})
    kept = accounts[-1].kept
    sources = [
        Source(
            name, _amount(tally), _amount(kept.get(name, [0, 0])),
            dict(reasons.get(name, Counter()).most_common()),
        )
        for name, tally in accounts[0].read.items()
    ]  # fmt: skip
    return sorted(sources, key=lambda source: (-source.read.documents, source.name))


def _amount(tally: Tally) -> Amount:
    return Amount(*tally)


def _most_first(tallies: Mapping[str, Tally]) -> list[tuple[str, Tally]]:
    return sorted(tallies.items(), key=lambda item: (-item[1][0], item[0]))


def _by_length(lengths: Mapping[str, int]) -> dict[int, int]:
    return dict(sorted((int(length), documents) for length, documents in lengths.items()))


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
