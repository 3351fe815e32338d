"""What a finished curation left to report on: `outcome.json` and `near-copies.jsonl`."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import orjson
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from data_prep.curation.dedup.decisions import Place
from data_prep.curation.pipeline.account import SCORE_BINS, Account, Tally
from data_prep.curation.pipeline.plan import FINGERPRINT, OUTCOME
from megatron_soaes.errors import UserError

NEAR_COPIES = "near-copies"
"""The block that drops near copies; the file of their clusters has its name."""
LARGEST_CLUSTERS = 10


def _well_formed(account: Account) -> Account:
    """What the types do not say: two numbers a tally, whole histograms, samples with a text."""
    tallies = [*account.read.values(), *account.kept.values(), *account.languages.values()]
    for reasons in account.dropped.values():
        tallies += reasons.values()
    if any(len(tally) != 2 for tally in tallies):
        raise ValueError("a count that is not documents and characters")
    if any(len(bins) != SCORE_BINS for bins in account.scores.values()):
        raise ValueError(f"scores in other than {SCORE_BINS} steps")
    if not all(length.isdecimal() for length in account.lengths):
        raise ValueError("a length that is no number")
    for sample in itertools.chain.from_iterable(account.samples.values()):
        if not all(isinstance(sample.get(key), str) for key in ("id", "source", "text")):
            raise ValueError("a sample without id, source and text")
    return account


def _balanced(account: Account) -> Account:
    """Every source has as many documents in as kept and dropped together."""
    for source in {**account.read, **account.kept, **account.dropped}:
        read, kept = account.read.get(source, [0, 0]), account.kept.get(source, [0, 0])
        gone = sum(documents for documents, _ in account.dropped.get(source, {}).values())
        if read[0] != kept[0] + gone:
            raise ValueError(f"{read[0]} documents in, {kept[0]} kept and {gone} dropped")
    return account


class Block(BaseModel):
    """A block of the curation and what it did."""

    name: str
    account: Annotated[Account, AfterValidator(_well_formed), AfterValidator(_balanced)]


class Dataset(BaseModel):
    """An indexed dataset and its weight in the blend."""

    name: str
    prefix: str
    weight: float


class Outcome(BaseModel):
    """The content of `outcome.json`."""

    blocks: Annotated[list[Block], Field(min_length=1)]
    """In the order in which documents pass them."""
    documents: dict[str, list[str]]
    """Files of the documents that are left, by corpus."""
    tokens: dict[str, int]
    """By corpus; empty when none were made."""
    blend: list[Dataset]
    identity: str
    """Hash of the recipe and the inputs."""

    @model_validator(mode="after")
    def _connected(self) -> Outcome:
        """Each block reads what the one before kept, and the blend is of the tokens."""
        for before, after in itertools.pairwise(self.blocks):
            if _nonzero(before.account.kept) != _nonzero(after.account.read):
                raise ValueError(f"{after.name} did not read what {before.name} kept")
        if {dataset.name for dataset in self.blend} != set(self.tokens):
            raise ValueError("tokens of other corpora than those of the blend")
        return self


def _nonzero(tallies: dict[str, Tally]) -> dict[str, Tally]:
    return {name: tally for name, tally in tallies.items() if tally[0]}


class Cluster(BaseModel):
    """Near copies of each other: the one that stays and those that went."""

    size: Annotated[int, Field(ge=2)]
    """Documents, with the one that stays."""
    kept: Place
    removed: list[Place]


@dataclass(frozen=True)
class Clusters:
    """All clusters of near copies, added up."""

    sizes: dict[int, int] = field(default_factory=dict)
    """Clusters by their number of documents, the smallest first."""
    largest: list[Cluster] = field(default_factory=list)

    @property
    def number(self) -> int:
        """How many clusters there are."""
        return sum(self.sizes.values())

    @property
    def removed(self) -> int:
        """Documents that went; one of each cluster stays."""
        return sum((size - 1) * clusters for size, clusters in self.sizes.items())


def read_outcome(output: Path) -> Outcome:
    """The outcome of the curation in the folder `output`.

    Raises UserError when there is none, and for a file that is no outcome or whose sums are wrong.
    """
    file = output / OUTCOME
    if not file.is_file():
        raise _no_outcome(output)
    try:
        return Outcome.model_validate(orjson.loads(file.read_bytes()))
    except orjson.JSONDecodeError as error:
        raise _foreign(file, f"no JSON ({error})") from None
    except ValidationError as errors:
        first = errors.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _foreign(f"{file}: {place}" if place else file, first["msg"]) from None


def read_clusters(output: Path, outcome: Outcome) -> Clusters | None:
    """The clusters of near copies; None when the curation did not look for any.

    Raises UserError when the file of clusters is missing, or not that of this outcome.
    """
    block = next((block for block in outcome.blocks if block.name == NEAR_COPIES), None)
    if block is None:
        return None
    file = output / f"{NEAR_COPIES}.jsonl"
    if not file.is_file():
        fix = "Restore it, or start `soaes prep curate` again with another output."
        raise UserError(file, "no such file", "the clusters of near copies", fix)
    clusters = _add_up(_clusters(file))
    dropped = block.account.totals("read")[0] - block.account.totals("kept")[0]
    if clusters.removed != dropped:
        raise UserError(
            file, f"{clusters.removed:,} documents removed", f"the {dropped:,} of {OUTCOME}",
            "Take both files from the same curation.",
        )  # fmt: skip
    return clusters


def _clusters(file: Path) -> Iterator[Cluster]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield Cluster.model_validate_json(line)
            except ValidationError as errors:
                found = errors.errors()[0]["msg"]
                raise _foreign(f"{file}:{number}", found) from None


def _add_up(clusters: Iterable[Cluster]) -> Clusters:
    """One pass: there may be millions, so only the largest are held."""
    sizes: Counter[int] = Counter()

    def counted() -> Iterator[Cluster]:
        for cluster in clusters:
            sizes[cluster.size] += 1
            yield cluster

    largest = heapq.nlargest(LARGEST_CLUSTERS, counted(), key=lambda cluster: cluster.size)
    return Clusters(dict(sorted(sizes.items())), largest)


def _no_outcome(output: Path) -> UserError:
    if (output / FINGERPRINT).is_file():
        fix = "Start the same `soaes prep curate` again: it goes on where it stopped."
        return UserError(output, "a curation that has not ended", f"one with {OUTCOME}", fix)
    fix = "Name the folder that is `output` in the curation's recipe."
    return UserError(output, f"no {OUTCOME}", "the output of a finished `soaes prep curate`", fix)


def _foreign(where: object, found: str) -> UserError:
    return UserError(
        where, found, "what `soaes prep curate` of this version wrote",
        "Start it again with another output.",
    )  # fmt: skip
