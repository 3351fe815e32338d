"""Our blocks as datatrove steps, so that they mix with datatrove's own and with a team's.

Each keeps an account (`account.py`) in a folder of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.curation.boilerplate import Boilerplate
from data_prep.curation.code_points import Analysed
from data_prep.curation.decontaminate import EvaluationIndex, find_overlaps, read_items
from data_prep.curation.dedup.decisions import copies_removed, open_decisions, reasons_to_go
from data_prep.curation.dedup.shingles import batches
from data_prep.curation.edits import Edited
from data_prep.curation.language import Language, LanguageRule
from data_prep.curation.normalise import Normalise
from data_prep.curation.pii.mask import MaskPersonalData
from data_prep.curation.pipeline.account import open_entry
from data_prep.curation.pipeline.documents import source_of
from data_prep.curation.pipeline.recipe import Scoring
from data_prep.curation.script_policy import ScriptPolicy
from data_prep.curation.selection.scores import NAMES, Selection, Settings, score_documents


class Edit(Protocol):
    """Changes a text."""

    def apply(self, text: str) -> Edited: ...


class Rule(Protocol):
    """Says of a text why it should go, or None."""

    def reason(self, analysed: Analysed) -> str | None: ...


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
            for document in data:
                read = document.text
                edits: dict[str, int] = {}
                reason = self._clean(document, edits)
                if reason is not None:
                    entry.drop(document, read, reason)
                    continue
                entry.account.changed(source_of(document), edits, self._mask(document))
                entry.account.keep(document, len(read))
                yield document

    def _clean(self, document: Document, counts: dict[str, int]) -> str | None:
        """Edit the document in place; why it goes, or None."""
        steps = self.cleaning
        text = _edited(document.text, steps.normalise, counts)
        if not text:
            return "empty"
        analysed = Analysed(text)
        language = steps.language.identify(analysed).language
        document.metadata["language"] = str(language)
        if language is Language.OTHER:
            return "other_language"
        if steps.boilerplate:
            shorter = _edited(text, steps.boilerplate, counts)
            if (reason := steps.boilerplate.reason(text, shorter)) is not None:
                return reason
            if shorter != text:
                text, analysed = shorter, Analysed(shorter)
        if language is Language.ZH:
            if (reason := steps.script.reason(analysed)) is not None:
                return reason
            converted = _edited(text, steps.script, counts)
            if converted != text:
                text, analysed = converted, Analysed(converted)
        for rule in steps.rules[language]:
            if (reason := rule.reason(analysed)) is not None:
                return reason
        document.text = text
        return None

    def _mask(self, document: Document) -> Mapping[str, int]:
        """Replace personal data in place; what was replaced, by kind."""
        if self.cleaning.personal_data is None:
            return {}
        masked = self.cleaning.personal_data.apply(document.text)
        document.text = masked.text
        return masked.counts


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


def _edited(text: str, edit: Edit, counts: dict[str, int]) -> str:
    result = edit.apply(text)
    for kind, places in result.counts.items():
        counts[kind] = counts.get(kind, 0) + places
    return result.text


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
