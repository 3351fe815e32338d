"""Files and directories that appear whole or not at all, and their hashes. No third party."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megatron_soaes.failpoints import failpoint


def temporary_sibling(path: Path) -> Path:
    """A name beside `path`, on the same file system, for writing what will be renamed to `path`."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def fsync_directory(directory: Path) -> None:
    """Make renames inside `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file; on success it replaces `path`, on an exception it is removed.

    Text is written as UTF-8 with "\\n" line ends; `mode` is "w" or "wb".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        if "b" in mode:
            stream: IO[Any] = temporary.open(mode)
        else:
            stream = temporary.open(mode, encoding="utf-8", newline="\n")
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        failpoint("before-file-rename")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory; on success it becomes `path`, else it is removed.

    Raises FileExistsError when `path` exists: results are never overwritten in place.
    """
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        publish_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_directory(temporary: Path, path: Path) -> None:
    """Flush every file below `temporary` to the disk, then rename it to `path`."""
    for folder, _, names in os.walk(temporary):
        for name in names:
            with (Path(folder) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        fsync_directory(Path(folder))
    failpoint("before-directory-rename")
    temporary.rename(path)
    fsync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` with `text` atomically."""
    with atomic_file(path) as stream:
        stream.write(text)


def write_json(path: Path, value: object) -> None:
    """Replace `path` with `value` as indented, key-ordered, readable JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Hex SHA-256 of a JSON value, independent of key order and white space."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()
