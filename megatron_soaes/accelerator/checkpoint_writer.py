"""Patches of Megatron-Core's checkpoint reading and writing that every device needs."""

from __future__ import annotations

import functools
import queue
from types import SimpleNamespace

from torch.distributed.checkpoint import state_dict_loader

from megatron_soaes.accelerator import safe_pickle


@functools.cache
def install() -> None:
    """Plain result queues, independent reads, safe pickles."""
    _hand_results_over_in_this_process()
    _read_without_waiting_for_others()
    safe_pickle.install()


def _hand_results_over_in_this_process() -> None:
    """Give each save a plain queue for its write results.

    Megatron-Core 0.16.1 keeps them in a queue served by a spawned `multiprocessing.Manager`: the
    first save waits about 4 s for it, the training program must be importable without side effects,
    and the manager outlives a killed trainer. `checkpoint.shard_writer` carries the results from
    the process that writes to the one that trains, so none of it is needed.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._get_write_results_queue = queue.Queue


def _read_without_waiting_for_others() -> None:
    """Let each rank plan and read its part of a checkpoint alone.

    torch plans a load in a collective and gathers its outcome in another one, in which all ranks
    wait without a word for one whose file system hangs. A load's global plan is only the list of
    the local ones, and ranks meet after it anyway (`checkpoint.distributed`), with a deadline.
    """
    from megatron.core.dist_checkpointing.strategies import torch as strategies

    strategies.checkpoint = SimpleNamespace(
        load_state_dict=functools.partial(state_dict_loader.load_state_dict, no_dist=True)
    )
