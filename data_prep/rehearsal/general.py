"""Real text found on any machine with Python: documentation of the standard library and packages.

Docstrings are read with `ast`, never imported. The order and the split into training and validation
follow from hashes of the files' names, so one machine gives one result, and a file's text is on
one side only.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path

from data_prep.rehearsal.prose import drop_reason, duplicate_key, paragraphs

MAX_DOCUMENT_CHARACTERS = 3000
MIN_DOCUMENT_CHARACTERS = 200
MAX_FILE_BYTES = 2_000_000
VALIDATION_ONE_IN = 16

_LANGUAGE_REFERENCE = "stdlib/pydoc_data/topics.py"
_SKIPPED_FOLDERS = {
    *("__pycache__", "site-packages", "dist-packages", "_vendor", "vendor"),
    *("test", "tests", "testing", "licenses", "include", "data", "locale"),
}
_DOCUMENT_SUFFIXES = (".rst", ".md", ".txt")
_SKIPPED_NAMES = ("license", "licence", "notice", "copying", "authors", "requirements")


@dataclass(frozen=True)
class Source:
    """One file of documentation. `name` is machine-independent: package and relative path."""

    name: str
    package: str
    path: Path

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.name.encode("utf-8")).digest()

    @property
    def is_validation(self) -> bool:
        return int.from_bytes(self.digest[:4], "big") % VALIDATION_ONE_IN == 0


@dataclass
class GeneralText:
    """Training and validation documents, `{"text", "source"}`, and what was counted on the way."""

    train: list[dict[str, str]] = field(default_factory=list)
    valid: list[dict[str, str]] = field(default_factory=list)
    characters_by_package: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def default_roots() -> dict[str, Path]:
    """The standard library ("stdlib") and the installed packages ("packages") of this Python."""
    paths = sysconfig.get_paths()
    return {"stdlib": Path(paths["stdlib"]), "packages": Path(paths["purelib"])}


def find_sources(roots: dict[str, Path]) -> list[Source]:
    """Every readable file below the roots, packages taking turns so that none crowds out the rest.

    Within a package the order is that of the hash of the file's name.
    """
    by_package: dict[str, list[Source]] = {}
    for label, root in sorted(roots.items()):
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(f for f in folders if f.lower() not in _SKIPPED_FOLDERS)
            for name in names:
                if not _is_wanted(folder, name):
                    continue
                path = Path(folder) / name
                relative = path.relative_to(root).as_posix()
                package = _package_of(label, relative)
                source = Source(f"{label}/{relative}", package, path)
                by_package.setdefault(package, []).append(source)
    for sources in by_package.values():
        sources.sort(key=lambda source: source.digest)
    turns = zip_longest(*(by_package[package] for package in sorted(by_package)))
    return [source for turn in turns for source in turn if source is not None]


def _is_wanted(folder: str, name: str) -> bool:
    if name.lower().startswith(_SKIPPED_NAMES):
        return False
    if name == "METADATA":
        return folder.endswith(".dist-info")
    return name.endswith((".py", *_DOCUMENT_SUFFIXES))


def _package_of(label: str, relative: str) -> str:
    """`numpy/core/x.py` and `numpy-2.4.6.dist-info/METADATA` both belong to `numpy`."""
    if label == "stdlib":
        is_reference = f"{label}/{relative}" == _LANGUAGE_REFERENCE
        return "language-reference" if is_reference else "stdlib"
    top = relative.partition("/")[0].removesuffix(".py").removesuffix(".dist-info")
    return top.partition("-")[0].lower()


def raw_texts(source: Source) -> Iterator[str]:
    """The documentation strings of a Python file in source order, or a document's whole text."""
    try:
        if source.path.stat().st_size > MAX_FILE_BYTES:
            return
        content = source.path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if source.path.name == "METADATA":
        yield content.partition("\n\n")[2]
    elif source.path.suffix != ".py":
        yield content
    elif '"""' in content or "'''" in content:
        yield from _python_texts(source, content)


def _python_texts(source: Source, content: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return
    if source.name == _LANGUAGE_REFERENCE:
        # The language reference ships as a dictionary of texts.
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
        return
    yield from _docstrings(tree)


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[str]:
    text = ast.get_docstring(node)
    if text is not None:
        yield text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child)


def gather(megabytes: float, roots: dict[str, Path] | None = None, workers: int = 1) -> GeneralText:
    """Clean, deduplicated prose until `megabytes` (10^6 bytes of UTF-8 text) are collected.

    A machine with less documentation gives less; the counts say how much. A paragraph that
    nearly equals an earlier one is dropped wherever it stands, so nothing is shared between
    training and validation. The result does not depend on the number of worker processes.
    """
    result = GeneralText()
    seen: set[str] = set()
    collected = 0
    sources = find_sources(default_roots() if roots is None else roots)
    with _mapper(workers) as ordered_map:
        for source, (prose, dropped) in zip(sources, ordered_map(_prose, sources), strict=True):
            if collected >= megabytes * 1_000_000:
                break
            result.dropped.update(dropped)
            kept = _unseen(prose, seen, result.dropped)
            for text in _documents(kept, result.dropped):
                side = result.valid if source.is_validation else result.train
                side.append({"text": text, "source": source.name})
                result.characters_by_package[source.package] += len(text)
                collected += len(text.encode("utf-8"))
    for side in (result.train, result.valid):
        side.sort(key=lambda row: hashlib.sha256(row["text"].encode("utf-8")).digest())
    return result


_Read = tuple[list[str], Counter[str]]


@contextmanager
def _mapper(
    workers: int,
) -> Iterator[Callable[[Callable[[Source], _Read], list[Source]], Iterator[_Read]]]:
    """A lazy, order-keeping map, in this process or over `workers` fresh ones."""
    if workers <= 1:
        yield map
        return
    with get_context("spawn").Pool(workers) as pool:
        yield partial(pool.imap, chunksize=32)


def _prose(source: Source) -> _Read:
    """The clean paragraphs of one file and the reasons of those that were dropped."""
    kept: list[str] = []
    dropped: Counter[str] = Counter()
    for text in raw_texts(source):
        for paragraph in paragraphs(text):
            reason = drop_reason(paragraph)
            if reason is None:
                kept.append(paragraph)
            else:
                dropped[reason] += 1
    return kept, dropped


def _unseen(prose: Iterable[str], seen: set[str], dropped: Counter[str]) -> Iterator[str]:
    for paragraph in prose:
        key = duplicate_key(paragraph)
        if key in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(key)
            yield paragraph


def _documents(kept: Iterable[str], dropped: Counter[str]) -> Iterator[str]:
    """Join a file's paragraphs, cut between paragraphs at `MAX_DOCUMENT_CHARACTERS`."""
    pending: list[str] = []
    size = 0
    for paragraph in kept:
        if pending and size + len(paragraph) > MAX_DOCUMENT_CHARACTERS:
            yield "\n".join(pending)
            pending, size = [], 0
        pending.append(paragraph)
        size += len(paragraph) + 1
    if size >= MIN_DOCUMENT_CHARACTERS:
        yield "\n".join(pending)
    elif pending:
        dropped["short_document"] += len(pending)
