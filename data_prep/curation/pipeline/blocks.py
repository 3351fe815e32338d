"""Our blocks as datatrove steps, so that they mix with datatrove's own and with a team's.

Each keeps an account (`account.py`) in a folder of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.curation.boilerplate import Boilerplate
from data_prep.curation.code_points import Batch
from data_prep.curation.decontaminate import EvaluationIndex, find_overlaps, read_items
from data_prep.curation.dedup.decisions import copies_removed, open_decisions, reasons_to_go
from data_prep.curation.dedup.shingles import batches
from data_prep.curation.edits import Edited
from data_prep.curation.language import Language, LanguageRule
from data_prep.curation.lines import Mask
from data_prep.curation.normalise import Normalise
from data_prep.curation.pii.mask import MaskPersonalData
from data_prep.curation.pipeline.account import open_entry
from data_prep.curation.pipeline.documents import source_of
from data_prep.curation.pipeline.recipe import Scoring
from data_prep.curation.script_policy import ScriptPolicy
from data_prep.curation.selection.scores import NAMES, Selection, Settings, score_documents


class Edit(Protocol):
    """Changes texts."""

    def may_change(self, batch: Batch) -> Mask:
        """Texts that `apply` may change; the others it would leave as they are. bool [texts]."""
        ...

    def apply(self, text: str) -> Edited: ...


class Rule(Protocol):
    """Says of each text why it should go, or None."""

    def reason(self, batch: Batch) -> list[str | None]: ...


@dataclass(frozen=True)
class Cleaning:
    """What is done with a text, in this order: whatever changes a text comes before what judges it,
    but for masks, which would change what is judged."""

    normalise: Normalise
    language: LanguageRule
    boilerplate: Boilerplate | None
    script: ScriptPolicy
    rules: Mapping[Language, Sequence[Rule]]
    personal_data: MaskPersonalData | None


class Clean(PipelineStep):
    """Normalises, finds the language, and judges by the rules of that language."""

    type = "Filter"
    name = "Clean"

    def __init__(self, cleaning: Cleaning, account: Path) -> None:
        super().__init__()
        self.cleaning = cleaning
        self.account = account

    def run(
        self, data: Iterable[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """The documents that stay, with their new text and `language`."""
        with open_entry(self.account, rank) as entry:
            for documents in _document_batches(data):
                under_way = [_UnderWay(document, document.text) for document in documents]
                self._clean(under_way)
                if self.cleaning.personal_data:
                    _edit(_staying(under_way), self.cleaning.personal_data, "masks")
                for each in under_way:
                    document, read = each.document, each.document.text
                    if each.reason is not None:
                        entry.drop(document, read, each.reason)
                        continue
                    document.text = each.text
                    entry.account.changed(source_of(document), each.edits, each.masks)
                    entry.account.keep(document, len(read))
                    yield document

    def _clean(self, under_way: list[_UnderWay]) -> None:
        """Edit the texts and find why they go."""
        steps = self.cleaning
        _edit(under_way, steps.normalise)
        for each in under_way:
            each.reason = None if each.text else "empty"
        staying = _staying(under_way)
        for each, verdict in zip(staying, steps.language.identify(_batch(staying)), strict=True):
            each.document.metadata["language"] = str(verdict.language)
            each.language = verdict.language
            each.reason = verdict.reason
        staying = _staying(staying)
        if steps.boilerplate:
            before = [each.text for each in staying]
            _edit(staying, steps.boilerplate)
            for each, longer in zip(staying, before, strict=True):
                each.reason = steps.boilerplate.reason(longer, each.text)
        for language, rules in steps.rules.items():
            chosen = [each for each in _staying(staying) if each.language is language]
            if language is Language.ZH:
                _judge(chosen, [steps.script])
                chosen = _staying(chosen)
                _edit(chosen, steps.script)
            _judge(chosen, rules)


class DropDecided(PipelineStep):
    """Drops what the decisions of a deduplication name; what stays learns its cluster's size."""

    type = "Filter"
    name = "Copies"

    def __init__(self, decisions: Path, reason: str, account: Path) -> None:
        super().__init__()
        self.decisions = decisions
        self.reason = reason
        self.account = account

    def run(
        self, data: Iterable[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """The documents that stay; `data` must be all of the shard, in the order of hashing."""
        decisions, shard = open_decisions(self.decisions), f"{rank:05d}"
        going, copies = reasons_to_go(decisions, shard), copies_removed(decisions, shard)
        with open_entry(self.account, rank) as entry:
            for number, document in enumerate(data):
                if stays := going.get(number):
                    place = f"{stays.shard}:{stays.document}"
                    entry.drop(document, document.text, self.reason, copy_of=place)
                    continue
                known = document.metadata.get("cluster_size", 1)
                document.metadata["cluster_size"] = known + copies.get(number, 0)
                entry.account.keep(document, len(document.text))
                yield document


class DropEvaluationText(PipelineStep):
    """Drops documents that hold a passage of an evaluation set."""

    type = "Filter"
    name = "Evaluation overlap"

    def __init__(
        self, files: Sequence[Path], fields: tuple[str, ...], max_overlap: float, account: Path
    ) -> None:
        super().__init__()
        self.files = files
        self.fields = fields
        self.max_overlap = max_overlap
        self.account = account

    def run(
        self, data: Iterable[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """The documents that share at most `max_overlap` of their n-grams with an item."""
        index = EvaluationIndex(read_items(self.files, self.fields))
        with open_entry(self.account, rank) as entry:
            for batch in _document_batches(data):
                found = {
                    finding.document: finding
                    for finding in find_overlaps([document.text for document in batch], index)
                    if finding.overlap > self.max_overlap
                }
                for number, document in enumerate(batch):
                    if finding := found.get(number):
                        overlap = round(finding.overlap, 4)
                        entry.drop(
                            document, document.text, "evaluation_overlap",
                            item=finding.item, overlap=overlap,
                        )  # fmt: skip
                        continue
                    entry.account.keep(document, len(document.text))
                    yield document


class Score(PipelineStep):
    """Stores the three scores of every document and their explanations; drops nothing."""

    type = "Score"
    name = "Credibility, relevance, importance"

    def __init__(self, scoring: Scoring, account: Path) -> None:
        super().__init__()
        self.scoring = scoring
        self.account = account

    def run(
        self, data: Iterable[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """All documents, with `scores` in their metadata."""
        files = self.scoring
        settings = Settings.read(files.sources, files.authorities, files.model, files.as_of)
        with open_entry(self.account, rank) as entry:
            for batch in _document_batches(data):
                fields = [
                    {"id": document.id, "text": document.text, "metadata": document.metadata}
                    for document in batch
                ]
                for document, scores in zip(batch, score_documents(fields, settings), strict=True):
                    document.metadata["scores"] = scores.to_json()
                    entry.account.keep(document, len(document.text))
                    yield document


class Select(PipelineStep):
    """Drops documents with a score below its minimum."""

    type = "Filter"
    name = "Selection"

    def __init__(self, keep: str, account: Path) -> None:
        super().__init__()
        self.keep = keep
        self.account = account

    def run(
        self, data: Iterable[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """The documents that stay."""
        selection = Selection.parse(self.keep)
        with open_entry(self.account, rank) as entry:
            for document in data:
                scores = document.metadata["scores"]
                if (reason := selection.reason(scores)) is not None:
                    shown = {name: round(scores[name], 3) for name in NAMES}
                    entry.drop(document, document.text, reason, scores=shown)
                    continue
                entry.account.keep(document, len(document.text))
                yield document


@dataclass
class _UnderWay:
    """A document that is being cleaned: its text so far, and what is known of it."""

    document: Document
    text: str
    language: Language = Language.OTHER
    reason: str | None = None
    edits: dict[str, int] = field(default_factory=dict)
    masks: dict[str, int] = field(default_factory=dict)


def _batch(under_way: Sequence[_UnderWay]) -> Batch:
    return Batch([each.text for each in under_way])


def _staying(under_way: Sequence[_UnderWay]) -> list[_UnderWay]:
    return [each for each in under_way if each.reason is None]


def _edit(
    under_way: Sequence[_UnderWay], edit: Edit, account: Literal["edits", "masks"] = "edits"
) -> None:
    """Change the texts and count the changes."""
    for number in np.flatnonzero(edit.may_change(_batch(under_way))).tolist():
        each = under_way[number]
        result = edit.apply(each.text)
        each.text = result.text
        counts = getattr(each, account)
        for kind, places in result.counts.items():
            counts[kind] = counts.get(kind, 0) + places


def _judge(under_way: Sequence[_UnderWay], rules: Sequence[Rule]) -> None:
    """Note the reason of the first rule that has one."""
    batch = _batch(under_way)
    for rule in rules:
        for each, reason in zip(under_way, rule.reason(batch), strict=True):
            each.reason = each.reason or reason


def _document_batches(data: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in the batches in which their texts are shingled."""
    waiting: list[Document] = []

    def texts() -> Iterator[str]:
        for document in data:
            waiting.append(document)
            yield document.text

    for batch in batches(texts()):
        taken, waiting[:] = waiting[: len(batch)], waiting[len(batch) :]
        yield taken
