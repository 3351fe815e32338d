"""Corpora with a ledger: which document is a copy of which, and how much of it was edited."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from data_prep.curation.dedup import candidates, clusters, minhash
from data_prep.curation.dedup.products import Product, Shard

LANGUAGES = ("zh", "en")
HAN = [chr(point) for point in range(0x4E00, 0x5600)]
SYLLABLES = ["ba", "cor", "di", "fen", "gul", "har", "ist", "jo", "ka", "lem", "mon", "ner", "pol"]


@dataclass(frozen=True)
class Planted:
    """A document made from another: `kind` is "exact", "edit" (share `level`), "cut"."""

    document: int
    source: int
    kind: str
    level: float
    language: str


@dataclass(frozen=True)
class Corpus:
    """Texts in corpus order with their ledger, and pairs that look alike but are no copies."""

    texts: list[str]
    ledger: list[Planted]


def units(language: str, count: int, rng: random.Random) -> list[str]:
    """Random units: Han characters, or English-looking words."""
    if language == "zh":
        return rng.choices(HAN, k=count)
    return ["".join(rng.choices(SYLLABLES, k=3)) for _ in range(count)]


def write(language: str, parts: Sequence[str], rng: random.Random) -> str:
    """The text of units, with punctuation between them here and there."""
    space, marks = ("", "，。") if language == "zh" else (" ", ",.")
    return space.join(part + (rng.choice(marks) if rng.random() < 0.1 else "") for part in parts)


def edited(language: str, parts: Sequence[str], share: float, rng: random.Random) -> list[str]:
    """The units with `share` of them replaced by others."""
    places = set(rng.sample(range(len(parts)), round(len(parts) * share)))
    return [
        units(language, 1, rng)[0] if place in places else part for place, part in enumerate(parts)
    ]


def plant(copies: int, length: int, seed: int) -> Corpus:
    """`copies` documents of every kind and language, shuffled among others that are no copies.

    For every original there is a look-alike: a document with a third of its units.
    """
    rng = random.Random(seed)
    kinds = [("exact", 0.0), ("edit", 0.01), ("edit", 0.02), ("edit", 0.05), ("cut", 0.9)]
    texts, made = [], []
    for language in LANGUAGES:
        for kind, level in kinds:
            for _ in range(copies):
                parts = units(language, length, rng)
                alike = parts[: length // 3] + units(language, length - length // 3, rng)
                if kind == "cut":
                    copy = parts[: round(length * level)]
                else:
                    copy = edited(language, parts, level, rng)
                made.append((len(texts) + 1, len(texts), kind, level, language))
                original = write(language, parts, rng)
                same = original if kind == "exact" else write(language, copy, rng)
                texts += [original, same, write(language, alike, rng)]
        texts += [write(language, units(language, count, rng), rng) for count in range(1, 12)]
    order = rng.sample(range(len(texts)), len(texts))
    place = {old: new for new, old in enumerate(order)}
    ledger = [Planted(place[copy], place[source], *rest) for copy, source, *rest in made]
    return Corpus([texts[old] for old in order], ledger)


def cut(texts: Sequence[str], shards: int) -> list[list[str]]:
    """Texts in so many consecutive shards."""
    edges = [len(texts) * part // shards for part in range(shards + 1)]
    return [list(texts[start:stop]) for start, stop in pairwise(edges)]


def named(shards: Sequence[Sequence[str]]) -> Iterator[tuple[Shard, Sequence[str]]]:
    """Shards with names and identities."""
    for number, texts in enumerate(shards):
        yield Shard(f"part-{number}", f"identity of part {number} of {len(shards)}"), texts


def near_duplicates(
    shards: Sequence[Sequence[str]],
    directory: Path,
    settings: minhash.MinHash | None = None,
    *,
    signing_order: Callable[[list[int]], list[int]] = list,
    verify: bool = True,
    scores: clusters.Scores | None = None,
) -> Product:
    """All steps of near deduplication, as one would run them for a corpus of these shards."""
    settings = settings or minhash.MinHash()
    parts = list(named(shards))
    for number in signing_order(list(range(len(parts)))):
        shard, texts = parts[number]
        minhash.sign_shard(texts, shard, directory / f"bands-{shard.name}", settings)
    proposed = directory / "candidates"
    candidates.propose([directory / f"bands-{s.name}" for s, _ in parts], proposed, settings)
    gathered = None
    if verify:
        gathered = [directory / f"shingles-{shard.name}" for shard, _ in parts]
        for (shard, texts), target in zip(parts, gathered, strict=True):
            candidates.gather_shard(texts, shard, proposed, target)
    return clusters.decide(proposed, gathered, directory / "decisions", scores=scores)


def removals(decisions: Product) -> dict[int, int]:
    """The document that stays, by the one that goes (numbers in the corpus); each goes once."""
    removed, kept = decisions.array("removed"), decisions.array("kept")
    assert (removed[1:] > removed[:-1]).all()
    return dict(zip(removed.tolist(), kept.tolist(), strict=True))


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
