"""One of two ranks: collectives as we do them and as torch does; results into FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from megatron_soaes.accelerator.gloo import all_gather, reduce_scatter
from megatron_soaes.accelerator.groups import (
    process_group,
    rendezvous_from_environment,
    world_rank,
)


def main(folder: Path) -> None:
    with process_group(rendezvous_from_environment()):
        whole = torch.randn(6, 5, generator=torch.Generator().manual_seed(world_rank()))
        ours, theirs, late = (torch.empty(3, 5) for _ in range(3))
        reduce_scatter(ours, whole)
        torch.distributed.reduce_scatter_tensor(theirs, whole)
        handle = reduce_scatter(late, whole, async_op=True)
        assert handle is not None
        handle.wait()
        largest = torch.empty(3, 5)
        reduce_scatter(largest, whole, op=torch.distributed.ReduceOp.MAX)
        gathered, gathered_late = (torch.empty(12, 5) for _ in range(2))
        all_gather(gathered, whole)
        # The rank's own part may already lie where it belongs.
        part = gathered_late[6 * world_rank() : 6 * world_rank() + 6]
        part.copy_(whole)
        handle = all_gather(gathered_late, part, async_op=True)
        assert handle is not None
        handle.wait()
        results = (whole, ours, theirs, late, largest, gathered, gathered_late)
        torch.save(results, folder / f"rank{world_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
