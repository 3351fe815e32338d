"""The directory in which a run keeps its finished ranges until its outputs are in place."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_soaes.errors import UserError
from megatron_soaes.files import atomic_directory, atomic_file, fsync_directory, write_json

MERGED = "merged"


def work_directory(prefix: Path) -> Path:
    """`.NAME.work` beside the outputs of `prefix`, on the same file system."""
    return prefix.with_name(f".{prefix.name}.work")


@contextmanager
def open_work_directory(
    directory: Path, fingerprint: dict[str, Any], start_afresh: bool
) -> Iterator[None]:
    """Hold the directory for a run described by `fingerprint`; make it where there is none.

    A directory of an earlier run of another description is refused with `UserError`, or with
    `start_afresh` emptied; so is, always, one that a living process holds. A `UserError` inside
    the block removes the directory; any other exception leaves it for the next attempt.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                directory,
                "another run that is writing there",
                "one run for an output prefix",
                "Wait for it, or choose another --output-prefix.",
            ) from None
        _claim(directory, fingerprint, start_afresh)
        try:
            yield
        except UserError:
            shutil.rmtree(directory)
            raise


def _claim(directory: Path, fingerprint: dict[str, Any], start_afresh: bool) -> None:
    description = directory / "job.json"
    earlier = json.loads(description.read_text("utf-8")) if description.exists() else {}
    # Compared as it reads back: tuples become lists.
    present = json.loads(json.dumps(fingerprint))
    differing = ", ".join(key for key in present if earlier.get(key) != present[key])
    if earlier and earlier != present and not start_afresh:
        raise UserError(
            directory,
            f"the unfinished run of another command (different: {differing})",
            "none, or one of this command",
            "Repeat the earlier command to finish it, or start afresh with --overwrite.",
        )
    for entry in directory.iterdir():
        if entry.name == "lock" or (earlier == present and ".tmp-" not in entry.name):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    write_json(description, present)


def is_merged(directory: Path) -> bool:
    """Whether a run was stopped between merging its shards and putting the outputs in place."""
    return (directory / MERGED).exists()


@contextmanager
def merging(directory: Path) -> Iterator[Path]:
    """An empty directory for the outputs, which appears whole as the merged outputs."""
    with atomic_directory(directory / MERGED) as outputs:
        yield outputs


def publish(directory: Path, targets: dict[str, Path]) -> None:
    """Move merged outputs to `targets`, in order, and remove the work directory.

    The old files of all targets that are still to come are removed first, so that at no moment
    files of two runs stand side by side. A run killed in between goes on from what is left.
    """
    merged = directory / MERGED
    left = {name: target for name, target in targets.items() if (merged / name).exists()}
    for target in left.values():
        target.unlink(missing_ok=True)
    for name, target in left.items():
        _move(merged / name, target)
    for folder in {target.parent for target in left.values()}:
        fsync_directory(folder)
    merged.rmdir()
    shutil.rmtree(directory)


def _move(source: Path, target: Path) -> None:
    if source.stat().st_dev == target.parent.stat().st_dev:
        source.replace(target)
        return
    with atomic_file(target, "wb") as stream, source.open("rb") as content:
        shutil.copyfileobj(content, stream)
    source.unlink()
