"""The folder of a model's checkpoints, laid out as Megatron-LM lays it out.

ROOT/latest_checkpointed_iteration.txt   the newest complete iteration, as a number
ROOT/best_checkpointed_iteration.txt     the best one by held-out loss, where a set decides
ROOT/iter_0000100/                       one torch_dist checkpoint, and trainer_state.json
ROOT/hf/                                 config.json, tokenizer, generation config of the model

What is not complete yet, or not any more, has a name that begins with a dot and ends with a token
of its own: `.iter_0000100.tmp-1f2e3d4c`. A process that outlives its run may go on writing there;
no later run uses that name.
"""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path

from megatron_soaes import files
from megatron_soaes.errors import UserError
from megatron_soaes.failpoints import failpoint

TRACKER = "latest_checkpointed_iteration.txt"
BEST_TRACKER = "best_checkpointed_iteration.txt"
HF_FILES = "hf"
PARTS = ("metadata.json", ".metadata", "common.pt")
"""Files that every torch_dist checkpoint has beside its shards."""


def iteration_directory(root: Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration lies."""
    return root / f"iter_{iteration:07d}"


def latest_iteration(root: Path) -> int | None:
    """The newest complete iteration, None when nothing was saved yet.

    Raises UserError when the pointer holds no number or names a folder that is not there.
    """
    return _tracked(root, TRACKER)


def best_iteration(root: Path) -> int:
    """The best complete iteration by held-out loss.

    Raises UserError when none was marked, or when the pointer is as `latest_iteration` refuses it.
    """
    found = _tracked(root, BEST_TRACKER)
    if found is None:
        raise UserError(
            root / BEST_TRACKER, "no such file", "the number of the best checkpoint",
            "Set validation.best of the stage that saves here, and train it.",
        )  # fmt: skip
    return found


def _tracked(root: Path, name: str) -> int | None:
    tracker = root / name
    if not tracker.exists():
        return None
    text = tracker.read_text(encoding="utf-8").strip()
    if not text.isdecimal() or not iteration_directory(root, int(text)).is_dir():
        raise UserError(
            tracker, repr(text), "the number of an iter_ folder beside it",
            "Write the number of a complete checkpoint into it, or choose another folder.",
        )  # fmt: skip
    return int(text)


def require_iteration(root: Path, iteration: int | None = None) -> int:
    """`iteration` if its checkpoint exists, by default the newest; UserError when there is none."""
    found = latest_iteration(root) if iteration is None else iteration
    if found is None or not iteration_directory(root, found).is_dir():
        wanted = "a checkpoint" if iteration is None else iteration_directory(root, iteration).name
        raise UserError(
            root, "no such checkpoint", wanted, "Give the folder that holds " + TRACKER + "."
        )
    return found


def iterations(root: Path) -> list[int]:
    """All iterations that have a folder under `root`, oldest first."""
    if not root.is_dir():
        return []
    matches = (re.fullmatch(r"iter_(\d{7,})", path.name) for path in root.iterdir())
    return sorted(int(match.group(1)) for match in matches if match)


def resolve(path: Path, iteration: int | None = None) -> Path:
    """The folder of one checkpoint: `path` itself, or an iteration (the newest) of a root."""
    if iteration is None and any((path / name).is_file() for name in PARTS):
        return path
    return iteration_directory(path, require_iteration(path, iteration))


def new_token() -> str:
    """A suffix that no other process has used."""
    return secrets.token_hex(4)


def temporary_directory(root: Path, iteration: int, token: str) -> Path:
    """Where an iteration is written before it is complete; all ranks must use one token."""
    return root / f".{iteration_directory(root, iteration).name}.tmp-{token}"


def publish_iteration(root: Path, temporary: Path, iteration: int) -> None:
    """Make a complete checkpoint in `temporary` the newest one: flush, rename, move the pointer."""
    files.publish_directory(temporary, iteration_directory(root, iteration))
    failpoint("before-pointer")
    move_pointer(root, iteration)


def mark_best(root: Path, iteration: int) -> None:
    """Say that `iteration` is the best one so far."""
    files.write_text(root / BEST_TRACKER, f"{iteration}\n")


def move_pointer(root: Path, iteration: int) -> None:
    """Say that `iteration` is the newest complete one."""
    files.write_text(root / TRACKER, f"{iteration}\n")


def discard_iteration(root: Path, iteration: int) -> None:
    """Remove an iteration's checkpoint, if there is one; it is gone before its files are."""
    folder = iteration_directory(root, iteration)
    if folder.exists():
        trash = folder.with_name(f".{folder.name}.trash-{new_token()}")
        failpoint("before-discard")
        folder.rename(trash)
        files.fsync_directory(root)
        shutil.rmtree(trash)


def remove_leftovers(root: Path) -> list[Path]:
    """Remove what dead runs left unfinished under `root`; returns what it was.

    One run at a time saves into a folder, so whoever starts may take all of it for dead. A process
    of the dead run that still writes there fails, or keeps an empty folder for the next start.
    """
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if re.fullmatch(r"\..+\.(tmp|trash)-\w+", path.name)]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def carry_hf_files(source: Path, root: Path) -> None:
    """Copy the model's configuration and tokenizer from another checkpoint root, if not there."""
    target = root / HF_FILES
    if not target.exists():
        with files.atomic_directory(target) as temporary:
            shutil.copytree(source / HF_FILES, temporary, dirs_exist_ok=True)
