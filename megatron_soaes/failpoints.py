"""Points with a name at which a process kills itself on request: that a crash is survived is tried.

`SOAES_FAILPOINT=before-pointer soaes run recipe.yaml` dies there, `before-pointer:3` when a process
passes the point for the third time; the same command without the variable must then go on to the
same result. The variable reaches every process of a run, and each counts for itself.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast, get_args

from megatron_soaes.errors import UserError

VARIABLE = "SOAES_FAILPOINT"
Name = Literal[
    "mid-dataset-shard",
    "mid-checkpoint-shard",
    "mid-store-shard",
    "before-file-rename",
    "before-directory-rename",
    "before-pointer",
    "before-discard",
    "before-manifest",
    "between-stages",
]
FAILPOINTS: dict[Name, str] = {
    "mid-dataset-shard": "a part of a range of text or conversations is in its shard",
    "mid-checkpoint-shard": "a rank of training waits while its shards are being written",
    "mid-store-shard": "a shard of a teacher store is there, but not what describes it",
    "before-file-rename": "a file is complete under its temporary name",
    "before-directory-rename": "a folder is complete under its temporary name",
    "before-pointer": "a checkpoint is in its place, but the pointer names the one before",
    "before-discard": "a checkpoint that is to be removed is still in its place",
    "before-manifest": "the results of a stage are there, but not its manifest",
    "between-stages": "a stage has its manifest, and the next has not begun",
}
"""Every failpoint, and what is on the disk there."""


@dataclass
class _Wanted:
    name: Name
    left: int
    """Passes until the deadly one."""


def failpoint(name: Name) -> None:
    """Kill this process with SIGKILL if that is wanted here and now; otherwise do nothing.

    Raises what `check_failpoint` raises.
    """
    wanted = _wanted()
    if wanted is None or wanted.name != name:
        return
    wanted.left -= 1
    if wanted.left == 0:
        os.write(2, f"failpoint {name}: process {os.getpid()} kills itself\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


def check_failpoint() -> None:
    """Raise UserError when the variable holds no name of a failpoint, with or without a number."""
    _wanted()


@cache
def _wanted() -> _Wanted | None:
    """What the variable asked for when this process, or one it was forked from, first looked."""
    found = os.environ.get(VARIABLE)
    if found is None:
        return None
    name, colon, number = found.partition(":")
    count = number if colon else "1"
    if name not in get_args(Name) or not count.isdecimal() or int(count) == 0:
        raise UserError(
            VARIABLE, repr(found), f"NAME or NAME:N, where NAME is one of {', '.join(FAILPOINTS)}",
            "Correct the variable, or unset it: it is only for trying crashes.",
        )  # fmt: skip
    return _Wanted(cast(Name, name), int(count))
