"""The manifest beside a dataset: where it is, and what it says of the dataset's files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.datasets.checksums import Piece, pieces_of
from megatron_soaes.errors import UserError

SUFFIX = ".manifest.json"


@dataclass(frozen=True)
class DatasetManifest:
    """What is known of one dataset. Every part may be missing: other tools write none of it."""

    path: Path | None
    tokenizer: dict[str, Any] | None
    """`path` and `sha256` of its tokenizer.json, among others."""
    files: dict[str, dict[str, Any]]
    """Entries of `checksums.described` by suffix, `bin` and `idx`."""

    def pieces(self, suffix: str) -> list[Piece] | None:
        """The checksums of a file."""
        return pieces_of(self.files[suffix]) if suffix in self.files else None


def manifest_of(prefix: Path) -> DatasetManifest:
    """Find the manifest that speaks of a dataset: `PREFIX.manifest.json`, or that of the run whose
    prefix it begins with. Raises UserError when it is no JSON object."""
    for file in _candidates(prefix):
        content = _read(file)
        files = content.get("files", {})
        names = {suffix: f"{prefix.name}.{suffix}" for suffix in ("bin", "idx")}
        if names["bin"] in files or file.name == f"{prefix.name}{SUFFIX}":
            known = {suffix: files[name] for suffix, name in names.items() if name in files}
            tokenizer = content.get("tokenizer") or content.get("run", {}).get("tokenizer")
            return DatasetManifest(file, tokenizer, known)
    return DatasetManifest(None, None, {})


def _candidates(prefix: Path) -> list[Path]:
    own = Path(f"{prefix}{SUFFIX}")
    others = sorted(prefix.parent.glob(f"*{SUFFIX}"))
    shared = [file for file in others if prefix.name.startswith(file.name.removesuffix(SUFFIX))]
    return [file for file in dict.fromkeys([own, *reversed(shared)]) if file.is_file()]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(file, "no JSON object", "a manifest", "Remove it, or copy it again.")
    return content
