"""One of two tensor-parallel ranks that share a vocabulary: distillation losses, and teachers.

`python -m tests.losses.distillation_two_ranks FOLDER` writes FOLDER/rank{N}.pt.
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
from tests.losses.distillation_cases import Case, all_cases, call, make_teacher


def main(folder: Path) -> None:
    with process_group(rendezvous_from_environment()), model_parallel(tensor=2):
        results = {name: call(case, world_rank(), 2) for name, case in all_cases().items()}
        teachers = {}
        for name in ("top 40", "sampled 200"):
            case = Case("forward-kl", name)
            part = case.tensors()[1].chunk(2, dim=-1)[world_rank()]
            teachers[name] = vars(make_teacher(case, part))
        torch.save((results, teachers), folder / f"rank{world_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
