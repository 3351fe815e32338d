"""SHA-256 of every file of a checkpoint, recorded when it is saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_soaes import files
from megatron_soaes.errors import UserError

FILE_NAME = "checksums.json"


@dataclass(frozen=True)
class FileSum:
    """What a file is known by."""

    bytes: int
    sha256: str
    """Hexadecimal."""


def sum_files(paths: Iterable[Path]) -> dict[str, FileSum]:
    """The sums of files, by name without folder."""
    return {path.name: FileSum(path.stat().st_size, files.sha256_file(path)) for path in paths}


def record(directory: Path, known: Mapping[str, FileSum]) -> None:
    """Write `checksums.json` about all files in `directory`; those not yet `known` are read."""
    rest = [path for path in directory.iterdir() if path.is_file() and path.name not in known]
    sums = {**known, **sum_files(rest)}
    files.write_json(
        directory / FILE_NAME,
        {"algorithm": "sha256", "files": {name: asdict(found) for name, found in sums.items()}},
    )


def recorded(directory: Path) -> dict[str, FileSum] | None:
    """The recorded sums by file name, None where none were recorded; UserError when damaged."""
    file = directory / FILE_NAME
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: FileSum(**entry) for name, entry in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            file, f"damaged content ({error})", "the sums that the save recorded",
            "Use another checkpoint.",
        ) from None  # fmt: skip
