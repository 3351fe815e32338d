"""Our collectives over gloo give what torch's give."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_soaes.accelerator.launch import launch


def test_reduce_scatter_and_all_gather(tmp_path: Path) -> None:
    assert launch("tests.accelerator.two_ranks", [str(tmp_path)], 2, tmp_path / "logs") == 0
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    wholes = [rank[0] for rank in ranks]
    for rank, (_, ours, theirs, late, largest, gathered, gathered_late) in enumerate(ranks):
        part = slice(3 * rank, 3 * rank + 3)
        assert torch.equal(ours, wholes[0][part] + wholes[1][part])
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, late)
        assert torch.equal(largest, torch.maximum(wholes[0][part], wholes[1][part]))
        assert torch.equal(gathered, torch.cat(wholes))
        assert torch.equal(gathered_late, torch.cat(wholes))
