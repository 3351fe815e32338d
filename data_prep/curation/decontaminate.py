"""Documents that hold a passage of an evaluation set, found by shared n-grams of units.

Units are those of near duplicates (`dedup.shingles`): a Chinese character or a word of another
script. Thirteen of them is the usual length (Brown et al. 2020, Language Models are Few-Shot
Learners, appendix C). An evaluation item shorter than that is not looked for, and is listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.curation.dedup.shingles import Shingles, UInt64, shingle
from data_prep.documents import BadDocumentError, parse_json_line
from megatron_soaes.errors import UserError

DEFAULT_UNITS = 13
FILTER_BITS = 22


@dataclass(frozen=True)
class Item:
    """An item of an evaluation set: `FILE:LINE` of its prompt and answer."""

    place: str
    text: str


@dataclass(frozen=True)
class Finding:
    """A document that shares n-grams with evaluation items.

    `item` is the place of the item with which it shares the most (of equals the first), `shared`
    how many of the document's n-grams any item has, `overlap` their fraction of all it has.
    """

    document: int
    item: str
    shared: int
    overlap: float


def read_items(files: Iterable[Path], fields: tuple[str, ...] = ("prompt", "answer")) -> list[Item]:
    """The items of JSONL evaluation files, one a line: the texts at `fields`, in that order.

    Raises `UserError` with the file and the line for a line without a text at every field.
    """
    items = []
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                place = f"{file}:{number}"
                try:
                    texts = parse_json_line(line, fields)
                except BadDocumentError as problem:
                    expected = f"an object with a text at each of: {', '.join(fields)}"
                    fix = "Correct the line, or name the fields that the file has."
                    raise UserError(place, problem.found, expected, fix) from None
                if texts is not None:
                    items.append(Item(place, "\n".join(texts)))
    return items


class EvaluationIndex:
    """The n-grams of evaluation items. Raises `UserError` when there is no item.

    `too_short` lists the places of items of fewer than `units` units. Memory: 12 bytes an n-gram
    and 4 MB.
    """

    def __init__(self, items: Iterable[Item], units: int = DEFAULT_UNITS) -> None:
        items = list(items)
        if not items:
            raise UserError("evaluation items", "none", "at least one", "Name evaluation files.")
        self.units = units
        self.places = [item.place for item in items]
        # Counted with shingles of one unit: a short text has a shorter shingle otherwise.
        lengths = np.diff(shingle([item.text for item in items], 1).starts)
        long = np.flatnonzero(lengths >= units)
        self.too_short = [self.places[item] for item in np.flatnonzero(lengths < units)]
        shingles = shingle([items[item].text for item in long], units)
        owners = np.repeat(long, np.diff(shingles.starts).astype(np.int64))
        self._hashes, first = np.unique(shingles.hashes, return_index=True)
        self._owners = owners[first].astype(np.uint32)
        self._may_hold = np.zeros(1 << FILTER_BITS, dtype=np.bool_)
        self._may_hold[_prefix(self._hashes)] = True

    def matches(self, shingles: Shingles) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
        """Where shingles of `units` units are those of an item, and of which (the first)."""
        places = np.flatnonzero(self._may_hold[_prefix(shingles.hashes)])
        hashes = shingles.hashes[places]
        found = np.searchsorted(self._hashes, hashes)
        # A hash above all of the index is found behind its end.
        known = np.append(self._hashes, np.uint64(0))[found] == hashes
        known &= found < len(self._hashes)
        return places[known], self._owners[found[known]]


def find_overlaps(texts: Sequence[str], index: EvaluationIndex) -> Iterator[Finding]:
    """The texts that share n-grams with evaluation items, by rising number; 28 bytes of memory a
    character."""
    for document, item, shared, ngrams in _find(shingle(texts, index.units), index):
        yield Finding(document, index.places[item], shared, shared / ngrams)


def _find(shingles: Shingles, index: EvaluationIndex) -> Iterator[tuple[int, int, int, int]]:
    """Document, item, shared n-grams and n-grams of each that shares any."""
    places, owners = index.matches(shingles)
    documents = np.searchsorted(shingles.starts, places.astype(np.uint64), side="right") - 1
    ngrams = np.diff(shingles.starts)
    for part in np.split(np.arange(len(documents)), np.flatnonzero(np.diff(documents)) + 1):
        if len(part):
            items, counts = np.unique(owners[part], return_counts=True)
            document = documents[part[0]]
            best = items[np.argmax(counts)]
            yield int(document), int(best), len(part), int(ngrams[document])


def _prefix(hashes: UInt64) -> UInt64:
    """The leading bits: nearly all n-grams of a corpus are told from the items' by them."""
    return hashes >> np.uint64(64 - FILTER_BITS)
