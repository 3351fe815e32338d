"""Hashes of inputs and outputs, with a memory of what was hashed before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_soaes import files


class HashCache:
    """SHA-256 of files and folders; a file whose size and time are known is not read again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = self._read()

    def of(self, path: Path) -> str:
        """Hash of a file's bytes, or of all names and bytes below a folder."""
        if path.is_dir():
            return tree_hash({str(p.relative_to(path)): self.of(p) for p in files_below(path)})
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._known.get(str(path))
        if known is not None and known[:2] == stamp:
            return str(known[2])
        digest = files.sha256_file(path)
        self._known[str(path)] = [*stamp, digest]
        return digest

    def save(self) -> None:
        """Keep what is known for the next run, beside what others have learnt meanwhile."""
        files.write_json(self._file, self._read() | self._known)

    def _read(self) -> dict[str, list[Any]]:
        if not self._file.exists():
            return {}
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except ValueError:
            return {}  # only a memory: what a damaged one held is hashed again
        return known if isinstance(known, dict) else {}


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def tree_hash(hashes: Mapping[str, str]) -> str:
    """One hash for a folder, from its files' relative names and hashes."""
    return files.sha256_json(dict(hashes))
