"""The folder of a model's checkpoints, laid out as Megatron-LM lays it out.

ROOT/latest_checkpointed_iteration.txt   the newest complete iteration, as a number
ROOT/iter_0000100/                       one torch_dist checkpoint, and trainer_state.json
ROOT/hf/                                 config.json, tokenizer, generation config of the model
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_soaes import files
from megatron_soaes.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"
HF_FILES = "hf"


def iteration_directory(root: Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration lies."""
    return root / f"iter_{iteration:07d}"


def latest_iteration(root: Path) -> int | None:
    """The newest complete iteration, None when nothing was saved yet.

    Raises UserError when the pointer holds no number or names a folder that is not there.
    """
    tracker = root / TRACKER
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


def publish_iteration(root: Path, temporary: Path, iteration: int) -> None:
    """Make a complete checkpoint in `temporary` the newest one: flush, rename, move the pointer."""
    files.publish_directory(temporary, iteration_directory(root, iteration))
    files.write_text(root / TRACKER, f"{iteration}\n")


def temporary_directory(root: Path, iteration: int) -> Path:
    """Where an iteration is written before it is complete; the same name on every rank."""
    return root / f".{iteration_directory(root, iteration).name}.tmp"


def is_empty(root: Path) -> bool:
    """Whether nothing was ever saved under `root`."""
    return not root.exists() or not any(os.scandir(root))
