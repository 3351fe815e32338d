"""The first block of a curation: the documents of one part of the raw corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.curation.pipeline.account import Entry, open_entry
from data_prep.curation.pipeline.web import extracted, is_html, is_warc, warc_pages
from data_prep.documents import BadDocumentError, Reason, check_surrogates, json_type
from data_prep.ranges import InputRange
from data_prep.sft.reader import NumberedRecord, read_records
from megatron_soaes.errors import UserError


@dataclass(frozen=True)
class Part:
    """What one task reads: a range of a file of JSON lines or Parquet rows, or whole files."""

    corpus: str
    source: InputRange | None
    files: tuple[Path, ...] = ()
    """Texts and HTML pages, a document each; or one WARC file."""


@dataclass(frozen=True)
class Keys:
    """Where the fields of a document stand in a record."""

    text: str = "text"
    id: str = "id"
    source: str = "source"
    """Where it comes from (a site, a publisher); a record without it is of its corpus."""


class ReadPart(PipelineStep):
    """Reads the part of a task. Lines without a document are counted, or stop the run."""

    type = "Reader"
    name = "Part of the corpus"

    def __init__(
        self, parts: list[Part], keys: dict[str, Keys], account: Path, *, skip_bad: bool
    ) -> None:
        """`keys` are those of each corpus; with `skip_bad` off the first bad line is an error."""
        super().__init__()
        self.parts = parts
        self.keys = keys
        self.account = account
        self.skip_bad = skip_bad

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents of part `rank`, each with its corpus and source."""
        part = self.parts[rank]
        with open_entry(self.account, rank) as entry:
            documents = self._records(part, entry) if part.source else _files(part, entry)
            for document in documents:
                entry.account.keep(document, len(document.text))
                yield document

    def _records(self, part: Part, entry: Entry) -> Iterator[Document]:
        assert part.source is not None
        keys, skipped = self.keys[part.corpus], entry.account.skipped
        for batch in read_records(part.source):
            if batch.blank:
                skipped["blank"] = skipped.get("blank", 0) + batch.blank
            bad = list(batch.bad)
            for record in batch.records:
                try:
                    yield _document(part, record, keys)
                except BadDocumentError as error:
                    bad.append((record.number, error))
            for number, problem in sorted(bad, key=lambda item: item[0]):
                if not self.skip_bad:
                    raise UserError(
                        part.source.place(number), problem.found,
                        f"a JSON object with a text at {keys.text!r}",
                        "Correct the line, or set bad_lines: skip to count such lines and go on.",
                    )  # fmt: skip
                skipped[problem.reason] = skipped.get(problem.reason, 0) + 1


def _document(part: Part, record: NumberedRecord, keys: Keys) -> Document:
    assert part.source is not None
    fields = dict(record.value)
    text = fields.pop(keys.text, None)
    if not isinstance(text, str):
        reason = Reason.MISSING_KEY if keys.text not in record.value else Reason.NOT_A_STRING
        found = f"a JSON {json_type(text)} at '{keys.text}'"
        raise BadDocumentError(reason, found, record.raw)
    if record.may_hold_surrogates:
        check_surrogates(text, f"at '{keys.text}'", record.raw)
    # A line's number is within its range, so the range's start makes the name the file's own.
    place = f"{part.source.path}@{part.source.start}:{record.number}"
    given = fields.pop(keys.id, None)
    source = fields.pop(keys.source, None)
    metadata = {**fields, "corpus": part.corpus, "source": str(source or part.corpus)}
    return Document(text=text, id=place if given is None else str(given), metadata=metadata)


def _files(part: Part, entry: Entry) -> Iterator[Document]:
    if is_warc(part.files[0]):
        pages = warc_pages(part.files[0])
    elif is_html(part.files[0]):
        pages = (Document(text=_text_of(file), id=str(file)) for file in part.files)
    else:
        yield from (_located(part, Document(_text_of(file), str(file))) for file in part.files)
        return
    skipped = entry.account.skipped
    for page in extracted(pages, skipped):
        yield _located(part, page)


def _located(part: Part, document: Document) -> Document:
    source = urlsplit(str(document.metadata.get("url") or "")).hostname or part.corpus
    document.metadata |= {"corpus": part.corpus, "source": source}
    return document


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            file, f"a byte that is not UTF-8 at {error.start}", "text in UTF-8",
            "Convert the file, for example with iconv.",
        ) from None  # fmt: skip
