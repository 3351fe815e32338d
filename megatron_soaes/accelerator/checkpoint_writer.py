"""A patch of Megatron-Core's checkpoint writer that every device needs."""

from __future__ import annotations

import functools
import queue


@functools.cache
def install() -> None:
    """Hand write results over in a plain queue of this process.

    Megatron-Core 0.16.1 keeps them in a queue served by a spawned `multiprocessing.Manager`: the
    first save waits about 4 s for it, the training program must be importable without side effects,
    and the manager outlives a killed trainer. A synchronous save puts and takes the results in one
    process (the forked shard writers report through a queue of their own), so none of it is needed.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    results: queue.Queue[object] = queue.Queue()
    filesystem_async._get_write_results_queue = lambda: results
