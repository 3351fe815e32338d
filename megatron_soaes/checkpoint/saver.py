"""The checkpoints of one run, saved one after the other, in the foreground or the background.

A save goes through these edges, each of which can be the last one before a crash:
plan (all ranks) -> shards (each rank) -> metadata, sums -> rename -> pointer -> retention.
Until the rename everything lies in a folder with a name of its own that nobody reads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer

from megatron_soaes.accelerator.arrival import Arrivals
from megatron_soaes.accelerator.groups import all_true, world_rank
from megatron_soaes.accelerator.watchdog import Watchdog
from megatron_soaes.checkpoint import checksums, directory
from megatron_soaes.checkpoint.checksums import FileSum
from megatron_soaes.checkpoint.distributed import plan_save
from megatron_soaes.checkpoint.retention import delete_surplus
from megatron_soaes.checkpoint.shard_writer import ShardWriter
from megatron_soaes.checkpoint.trainer_state import TrainerState
from megatron_soaes.recipe.training_settings import Checkpointing


@dataclass(frozen=True)
class SaveReport:
    """A save that is complete."""

    iteration: int
    directory: Path
    seconds: float
    """From the call of `save` until the pointer had moved."""
    blocked_seconds: float
    """How much of it training waited for."""
    deleted: list[int]
    """Older iterations deleted by the retention; known to the first rank."""


@dataclass
class _Pending:
    state: TrainerState
    temporary: Path
    request: AsyncRequest
    writer: ShardWriter
    started: float
    blocked: float


class CheckpointSaver:
    """Saves under one root as the recipe's `checkpoints` section says. Every method is collective.

    Each wait for other ranks ends after `deadline_s` with a MissingRanksError that names them. In
    Megatron-Core's own collectives the watchdog ends the process then, and names them too. An error
    of one rank (a full disk) reaches the others as a RankFailedError.
    """

    def __init__(self, root: Path, settings: Checkpointing) -> None:
        """Remove what dead runs left unfinished under `root`."""
        self._root = root
        self._settings = settings
        self._arrivals = Arrivals(settings.deadline_s)
        self._pending: _Pending | None = None
        with self._arrivals.together(f"first use of {root}"):
            if world_rank() == 0:
                directory.remove_leftovers(root)

    def save(
        self,
        chunks: Sequence[GPTModel],
        optimizer: MegatronOptimizer,
        state: TrainerState,
        arguments: argparse.Namespace,
    ) -> list[SaveReport]:
        """Save `state.iteration`; returns the saves that this call completed.

        In the background it returns as soon as every tensor is copied, and the caller must call
        `poll` after each step and `finish` at the end. A save waits for the one before. A
        checkpoint up to the one that the pointer names is never written over (FileExistsError).
        """
        before = self.finish()
        started = time.perf_counter()
        temporary = self._prepare(state.iteration)
        with Watchdog(self._settings.deadline_s, f"planning of {temporary}"):
            request = plan_save(temporary, chunks, optimizer, state, arguments)
        with self._arrivals.together(f"start of writing {temporary}"):
            writer = ShardWriter(request, copy=self._settings.asynchronous)
        self._pending = _Pending(
            state, temporary, request, writer, started, time.perf_counter() - started
        )
        return before if self._settings.asynchronous else before + self.finish()

    def poll(self) -> list[SaveReport]:
        """Complete the pending save if every rank has written its part."""
        if self._pending is None or not all_true(self._pending.writer.done):
            return []
        return self.finish()

    def finish(self) -> list[SaveReport]:
        """Wait for the pending save, if there is one, and complete it."""
        if self._pending is None:
            return []
        pending, self._pending = self._pending, None
        called = time.perf_counter()
        with self._arrivals.together(f"end of writing {pending.temporary}"):
            sums = pending.writer.finish()
        for finalize in pending.request.finalize_fns:
            finalize()
        all_sums = _gather(sums)
        deleted: list[int] = []
        with self._arrivals.together(f"publication of {pending.temporary}"):
            if world_rank() == 0:
                deleted = self._publish(pending, all_sums)
        now = time.perf_counter()
        return [
            SaveReport(
                pending.state.iteration,
                directory.iteration_directory(self._root, pending.state.iteration),
                seconds=now - pending.started,
                blocked_seconds=pending.blocked + now - called,
                deleted=deleted,
            )
        ]

    def _prepare(self, iteration: int) -> Path:
        """Make the folder to write into, under a name that all ranks know."""
        token = [directory.new_token()]
        with self._arrivals.together(f"save of iteration {iteration} under {self._root}"):
            if world_rank() == 0:
                newest = directory.latest_iteration(self._root)
                if newest is not None and newest >= iteration:
                    raise FileExistsError(directory.iteration_directory(self._root, iteration))
                # Left by a crash before the pointer moved, or by a user who moved it back.
                directory.discard_iteration(self._root, iteration)
                directory.temporary_directory(self._root, iteration, token[0]).mkdir(parents=True)
        torch.distributed.broadcast_object_list(token)
        return directory.temporary_directory(self._root, iteration, token[0])

    def _publish(self, pending: _Pending, sums: dict[str, FileSum]) -> list[int]:
        pending.state.write(pending.temporary)
        checksums.record(pending.temporary, sums)
        directory.publish_iteration(self._root, pending.temporary, pending.state.iteration)
        best = pending.state.best["iteration"] if pending.state.best else None
        if best is not None:
            directory.mark_best(self._root, best)
        settings = self._settings
        return delete_surplus(self._root, settings.keep_last, settings.keep_every, best)


def _gather(sums: dict[str, FileSum]) -> dict[str, FileSum]:
    """The sums of all ranks' files (collective)."""
    found: list[dict[str, FileSum]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(found, sums)
    return {name: entry for part in found for name, entry in part.items()}
