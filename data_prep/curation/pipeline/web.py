"""Pages of a crawl: WARC records by datatrove's reader, their text by its Trafilatura extractor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from datatrove.data import Document

from megatron_soaes.errors import UserError

SECONDS_A_PAGE = 10.0
"""Longer than any page needs, so that the outcome does not depend on how busy a machine is."""
NO_TEXT = "no_text_in_page"


def is_warc(file: Path) -> bool:
    """Whether a file is a WARC archive, by its name."""
    return file.name.lower().endswith((".warc", ".warc.gz"))


def is_html(file: Path) -> bool:
    """Whether a file is a page, by its name."""
    return file.suffix.lower() in (".html", ".htm")


def warc_pages(file: Path) -> Iterator[Document]:
    """The HTML responses of an archive, with `url` and `date`."""
    try:
        from datatrove.pipeline.readers import WarcReader

        reader = WarcReader(str(file.parent), glob_pattern=file.name)
    except ImportError as error:
        raise _missing(file, error) from error
    for page in reader.run(None):
        page.metadata.pop("file_path", None)
        yield page


def extracted(pages: Iterable[Document], skipped: dict[str, int]) -> Iterator[Document]:
    """Pages with their main text in place of HTML; those without any are counted in `skipped`."""
    try:
        from datatrove.pipeline.extractors import Trafilatura

        extractor = Trafilatura(timeout=SECONDS_A_PAGE)
        extractor.extract("")
    except ImportError as error:
        raise _missing("pages of HTML", error) from error
    read = 0

    def counted() -> Iterator[Document]:
        nonlocal read
        for page in pages:
            read += 1
            yield page

    left = 0
    for page in extractor.run(counted()):
        left += 1
        yield page
    if read > left:
        skipped[NO_TEXT] = skipped.get(NO_TEXT, 0) + read - left


def _missing(where: object, error: ImportError) -> UserError:
    found = str(error).strip().splitlines()[0]
    fix = "Run: pip install 'megatron-soaes[web]' (python-magic needs the system's libmagic)."
    return UserError(where, found, "what datatrove reads pages with", fix)
