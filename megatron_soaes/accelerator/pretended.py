"""One rank of a layout of any size, in this process alone: groups that exist in name only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.accelerator.groups import seed_step


@contextmanager
def pretended_rank(
    rank: int, processes: int, *, tensor: int, pipeline: int, virtual_pipeline: int, context: int
) -> Iterator[None]:
    """Megatron-Core's groups as that rank would see them, for the block; nothing is exchanged.

    torch's `fake` backend answers every collective at once with what it was given: good for
    building a model, not for running it. No other process group may exist.
    """
    this_device()  # Megatron-Core is told what machine this is before it makes groups.
    from megatron.core import parallel_state

    # torch has the hook name the rank before every line of a traceback, and leaves it so.
    shown_before = sys.excepthook
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=processes)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            virtual_pipeline_model_parallel_size=virtual_pipeline if virtual_pipeline > 1 else None,
            context_parallel_size=context,
            # The fake store has no gloo.
            create_gloo_process_groups=False,
        )
        seed_step(0, 0)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
        sys.excepthook = shown_before
