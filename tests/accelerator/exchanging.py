"""One of several ranks: collectives as we do them and as torch does; results into FOLDER."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ReduceOp

from megatron_soaes.accelerator.gloo import all_gather, reduce_scatter
from megatron_soaes.accelerator.groups import (
    process_group,
    rendezvous_from_environment,
    world_rank,
)
from megatron_soaes.accelerator.mailbox import CAPACITY, mailbox_of

ROWS = 6
SIZES = {"by memory": 5, "by socket": CAPACITY // 4}


def collectives(columns: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Ours and torch's, of a tensor [ROWS, columns] that differs from rank to rank."""
    ranks = torch.distributed.get_world_size()
    numbers = torch.Generator().manual_seed(world_rank())
    whole = torch.randn(ROWS, columns, generator=numbers).to(dtype)
    scattered = [torch.empty(ROWS // ranks, columns, dtype=dtype) for _ in range(4)]
    ours, theirs, late, largest = scattered
    torch.distributed.reduce_scatter_tensor(theirs, whole)
    reduce_scatter(ours, whole)
    adding = reduce_scatter(late, whole, async_op=True)
    reduce_scatter(largest, whole, op=ReduceOp.MAX)
    gathered, gathered_late = (torch.empty(ROWS * ranks, columns, dtype=dtype) for _ in range(2))
    # The rank's own part may already lie where it belongs.
    part = gathered_late[ROWS * world_rank() : ROWS * (world_rank() + 1)]
    part.copy_(whole)
    gathering = all_gather(gathered_late, part, async_op=True)
    all_gather(gathered, whole)
    assert adding is not None and gathering is not None
    # Whoever asks twice gets the same.
    for handle in (adding, gathering, adding, gathering):
        handle.wait()
    return {
        "whole": whole, "ours": ours, "theirs": theirs, "late": late, "largest": largest,
        "gathered": gathered, "gathered late": gathered_late,
    }  # fmt: skip


def late_rank() -> str:
    """What a rank is told that waits for one that does not come."""
    group = torch.distributed.new_group(timeout=timedelta(seconds=1))
    mailbox = mailbox_of(group)
    assert mailbox is not None
    ranks = torch.distributed.get_world_size()
    if world_rank() == 0:
        return "came too late"
    try:
        mailbox.exchange([torch.ones(1)] * ranks, [torch.ones(1)] * ranks).wait()
    except TimeoutError as error:
        return str(error)
    return "heard from a rank that never came"


def main(folder: Path) -> None:
    with process_group(rendezvous_from_environment()):
        results = {
            (name, dtype): collectives(columns, dtype)
            for name, columns in SIZES.items()
            for dtype in (torch.float32, torch.bfloat16)
        }
        torch.save((results, late_rank()), folder / f"rank{world_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
