"""Which checkpoints of a run are kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron_soaes.checkpoint import directory


def surplus(
    iterations: Iterable[int],
    newest: int,
    keep_last: int | None,
    keep_every: int | None,
    best: int | None = None,
) -> list[int]:
    """The iterations to delete, oldest first.

    Kept are the newest `keep_last` up to `newest` (all of them when None), every multiple of
    `keep_every`, the `best` one, and whatever is later than `newest`, the last one known to be
    complete.
    """
    if keep_last is None:
        return []
    complete = sorted(i for i in iterations if i <= newest)
    old = [i for i in complete[:-keep_last] if i != best]
    return [i for i in old if keep_every is None or i % keep_every]


def delete_surplus(
    root: Path, keep_last: int | None, keep_every: int | None, best: int | None = None
) -> list[int]:
    """Delete the surplus checkpoints under `root` and return their iterations.

    Each disappears by a rename before its files are removed, so that a deletion that is cut short
    leaves nothing that looks like a checkpoint.
    """
    newest = directory.latest_iteration(root)
    if newest is None:
        return []
    deleted = surplus(directory.iterations(root), newest, keep_last, keep_every, best)
    for iteration in deleted:
        directory.discard_iteration(root, iteration)
    return deleted
