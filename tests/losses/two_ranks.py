"""One of two tensor-parallel ranks that share a vocabulary: losses and their gradients.

`python -m tests.losses.two_ranks FOLDER` reads FOLDER/cases.pt, writes FOLDER/CASE_rank{N}.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from megatron_soaes.accelerator.groups import (
    model_parallel,
    process_group,
    rendezvous_from_environment,
    world_rank,
)
from megatron_soaes.losses.cross_entropy import token_losses


def main(folder: Path) -> None:
    with process_group(rendezvous_from_environment()), model_parallel(tensor=2):
        for name, case in torch.load(folder / "cases.pt").items():
            part = case["logits"].chunk(2, dim=-1)[world_rank()].clone().requires_grad_()
            losses = token_losses(part, case["labels"], case["vocab_size"])
            losses.sum().backward()
            result = {"losses": losses.detach(), "gradient": part.grad}
            torch.save(result, folder / f"{name}_rank{world_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
