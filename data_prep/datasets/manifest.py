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
    of_conversations: bool = False
    """Tokens of SFT, which mean nothing without their weights, or the weights."""

    def pieces(self, suffix: str) -> list[Piece] | None:
        """The checksums of a file."""
        return pieces_of(self.files[suffix]) if suffix in self.files else None

    def require_text(self, prefix: Path) -> None:
        """Raise UserError for conversations, whose weights and sources would stay behind."""
        if self.of_conversations:
            raise UserError(
                prefix, f"conversations, by {self.path}", "a dataset of text",
                "Convert all conversations in one run (--input takes several files); a recipe "
                "parts them by `holdout`.",
            )  # fmt: skip


def manifest_of(prefix: Path) -> DatasetManifest:
    """Find the manifest that speaks of a dataset: `PREFIX.manifest.json`, or that of the run whose
    prefix it begins with; of conversations, and of their weights, their description.

    Raises UserError when it is no JSON object."""
    for file in _candidates(prefix):
        content = _read(file)
        files = content.get("files", {})
        names = {suffix: f"{prefix.name}.{suffix}" for suffix in ("bin", "idx")}
        if names["bin"] in files or file.name == f"{prefix.name}{SUFFIX}":
            known = {suffix: files[name] for suffix, name in names.items() if name in files}
            tokenizer = content.get("tokenizer") or content.get("run", {}).get("tokenizer")
            return DatasetManifest(file, tokenizer, known)
    return _of_conversations(prefix) or DatasetManifest(None, None, {})


def _of_conversations(prefix: Path) -> DatasetManifest | None:
    """From the description that `data_prep.sft.convert` writes: `P.json`, for `P` and `P_weights`.

    One of another writer may lack the checksums and the tokenizer's path.
    """
    for part in ("", "_weights"):
        file = Path(f"{str(prefix).removesuffix(part)}.json")
        content = _parsed(file) if file.is_file() and prefix.name.endswith(part) else None
        if isinstance(content, dict) and content.get("format") == "soaes-sft":
            files = content.get("files", {})
            names = {suffix: f"{part}.{suffix}" for suffix in ("bin", "idx")}
            known = {suffix: files[name] for suffix, name in names.items() if name in files}
            tokenizer = {key: content.get(f"tokenizer_{key}") for key in ("path", "sha256")}
            return DatasetManifest(file, tokenizer if tokenizer["path"] else None, known, True)
    return None


def _candidates(prefix: Path) -> list[Path]:
    own = Path(f"{prefix}{SUFFIX}")
    others = sorted(prefix.parent.glob(f"*{SUFFIX}"))
    shared = [file for file in others if prefix.name.startswith(file.name.removesuffix(SUFFIX))]
    return [file for file in dict.fromkeys([own, *reversed(shared)]) if file.is_file()]


def _read(file: Path) -> dict[str, Any]:
    content = _parsed(file)
    if not isinstance(content, dict):
        raise UserError(file, "no JSON object", "a manifest", "Remove it, or copy it again.")
    return content


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
