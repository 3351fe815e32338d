"""Writing down what a teacher holds likely at every position of stored text: forward passes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_soaes.accelerator.arrival import Arrivals
from megatron_soaes.accelerator.device import this_device
from megatron_soaes.accelerator.groups import world_rank
from megatron_soaes.accelerator.watchdog import Watchdog
from megatron_soaes.data.sample import MicroBatch, Sample, collate
from megatron_soaes.data.teacher_store import Answers, Capture, Origin, TeacherStore
from megatron_soaes.data.teacher_store import Layout as StoreLayout
from megatron_soaes.errors import UserError
from megatron_soaes.losses.teachers import draw, top_k
from megatron_soaes.models.zigzag import positions_of_rank, whole_sequence
from megatron_soaes.recipe.fp8 import Filling, filling_of
from megatron_soaes.recipe.training_settings import FP8, Layout
from megatron_soaes.training.step import run_schedule, sum_over_world
from megatron_soaes.training.stopping import StopSignal


class Samples(Protocol):
    """Samples by number, such as a mixture or a held-out set."""

    def __getitem__(self, number: int, /) -> Sample: ...


@dataclass(frozen=True)
class WantedStore:
    """A store to fill."""

    name: str
    """What progress calls it."""
    directory: Path
    samples: Samples
    """At least as many as `layout` says, each of `layout.positions` tokens."""
    origin: Origin
    layout: StoreLayout


@dataclass(frozen=True)
class AskedModel:
    """A teacher whose weights are loaded, in the layout that is active."""

    chunks: Sequence[GPTModel]
    layout: Layout
    micro_batch_size: int
    vocab_size: int
    """Ids of the tokenizer; the model may have rows for more, which take no part."""
    seed: int
    """Of the draws: those of a sample follow from it and from the sample's number alone."""
    fp8: FP8 | None = None


def capture(
    teacher: AskedModel, wanted: WantedStore, stop: StopSignal, hang_timeout_s: float = 1800.0
) -> bool:
    """Write the shards that are missing, then the manifest (collective over the world).

    Each replica does every so many-th shard, and its first rank of the last pipeline stage writes
    it; all ranks end when a round of shards takes longer than `hang_timeout_s`. False when a signal
    ended it before; what is written is whole, and the next call goes on. Raises UserError when the
    folder holds shards of something else, and for a teacher that is not finite.
    """
    store = Capture(wanted.directory, wanted.origin, wanted.layout)
    arrivals = Arrivals()
    missing = _from_first_rank(store.missing())
    replica = parallel_state.get_data_parallel_rank()
    replicas = parallel_state.get_data_parallel_world_size()
    for chunk in teacher.chunks:
        chunk.eval()
    progress = _Progress(wanted, missing)
    with Watchdog(hang_timeout_s, "capture") as watchdog:
        for first in range(0, len(missing), replicas):
            watchdog.beat()
            if sum_over_world([float(stop.received)])[0] > 0:
                return False
            dealt = missing[first : first + replicas]
            answers = _ask(teacher, wanted, dealt[replica]) if replica < len(dealt) else None
            with arrivals.together(f"writing {wanted.directory}"):
                if answers is not None:
                    _check_finite(wanted.directory, dealt[replica], answers)
                    store.write(dealt[replica], answers)
            progress.written(dealt)
    with arrivals.together(f"describing {wanted.directory}"):
        if world_rank() == 0:
            store.finish()
    return True


def residual_mass(store: TeacherStore, samples: Samples) -> float:
    """Mean probability, over weighed positions, of all tokens that a `top_k` store leaves out.

    It says whether k is large enough. Collective over the world.
    """
    mass, positions = 0.0, 0
    for number in range(world_rank(), len(store), torch.distributed.get_world_size()):
        counts = torch.from_numpy(samples[number].loss_weights[1:] > 0)
        mass += float(store[number].rest.double().exp()[counts].sum())
        positions += int(counts.sum())
    mass, weighed = sum_over_world([mass, positions])
    return mass / max(weighed, 1.0)


def _from_first_rank(shards: list[int]) -> list[int]:
    """The first rank's list: another may come to look when the first shards are written already."""
    box = [shards]
    torch.distributed.broadcast_object_list(box)
    return box[0]


@dataclass(frozen=True)
class _Laid:
    """Samples of the store as a micro-batch."""

    numbers: list[int]
    batch: MicroBatch


def _lay(numbers: list[int], samples: Samples, filling: Filling) -> _Laid:
    chosen = [samples[number] for number in numbers]
    return _Laid(numbers, collate(chosen, this_device().torch_device, filling))


def _ask(teacher: AskedModel, wanted: WantedStore, shard: int) -> Answers | None:
    """The answers to a shard's samples, [samples, positions, entries], on the rank that writes.

    Collective over the replica.
    """
    start, count = shard * wanted.layout.samples_per_shard, wanted.layout.samples_of(shard)
    size = teacher.micro_batch_size
    numbers = list(range(start, start + count))
    # The pipeline schedules take full micro-batches, a multiple of the stages, and no less.
    numbers += numbers[-1:] * (-count % (size * teacher.layout.pipeline_parallel))
    filling = filling_of(teacher.layout, teacher.fp8)
    laid = [
        _lay(numbers[at : at + size], wanted.samples, filling)
        for at in range(0, len(numbers), size)
    ]
    listener = _Listener(teacher, wanted, laid)
    with torch.no_grad():
        batches = [one.batch for one in laid]
        run_schedule(teacher.chunks, listener, batches, weight=1.0, train=False)
    return listener.answers(count)


class _Listener:
    """An objective without a loss, which keeps what the teacher says of each micro-batch."""

    def __init__(self, teacher: AskedModel, wanted: WantedStore, laid: Sequence[_Laid]) -> None:
        self._teacher = teacher
        self._wanted = wanted
        self._laid: Iterator[_Laid] = iter(laid)
        self._kept: list[Answers] = []

    def losses(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """As `Objective.losses`; all 0."""
        laid = next(self._laid)
        mine = self._answers(logits, laid)
        if parallel_state.get_tensor_model_parallel_rank() == 0:
            bounds = batch.cu_seqlens.tolist()
            whole = Answers(
                whole_sequence(mine.ids, bounds),
                whole_sequence(mine.log_probs, bounds),
                whole_sequence(mine.rest, bounds),
            ).at(laid.batch.places)
            if parallel_state.get_context_parallel_rank() == 0:
                self._kept.append(Answers(whole.ids.cpu(), whole.log_probs.cpu(), whole.rest.cpu()))
        return torch.zeros(batch.labels.shape, device=logits.device)

    def _answers(self, logits: Tensor, laid: _Laid) -> Answers:
        """At this context-parallel rank's positions; collective over tensor parallel."""
        layout, temperature = self._wanted.layout, self._wanted.origin.temperature
        vocab_size = self._teacher.vocab_size
        if layout.kind == "top_k":
            likely = top_k(logits, layout.entries, vocab_size, temperature)
            return Answers(likely.ids[0], likely.log_probs[0], likely.log_residual[0])
        drawn, log_normalizer = draw(
            logits,
            self._uniform(laid)[None],
            vocab_size,
            exponent=layout.exponent,
            temperature=temperature,
        )
        return Answers(drawn.ids[0], drawn.log_probs[0], log_normalizer[0])

    def _uniform(self, laid: _Laid) -> Tensor:
        """What decides the draws at this context-parallel rank's positions, [t, draws] fp64."""
        shape = self._wanted.layout.positions, self._wanted.layout.entries
        numbers = [
            np.random.default_rng((self._teacher.seed, number)).random(shape)
            for number in laid.numbers
        ]
        bounds = laid.batch.cu_seqlens.tolist()
        uniform = torch.zeros(bounds[-1], shape[1], dtype=torch.float64)
        uniform[laid.batch.places.cpu()] = torch.from_numpy(np.concatenate(numbers))
        ranks = parallel_state.get_context_parallel_world_size()
        if ranks == 1:
            return uniform
        rank = parallel_state.get_context_parallel_rank()
        return uniform[positions_of_rank(bounds, rank, ranks)]

    def answers(self, count: int) -> Answers | None:
        """Those to the first `count` samples, on the rank that kept them."""
        if not self._kept:
            return None
        layout = self._wanted.layout
        shape = -1, layout.positions, layout.entries
        return Answers(
            torch.cat([one.ids for one in self._kept]).view(shape)[:count],
            torch.cat([one.log_probs for one in self._kept]).view(shape)[:count],
            torch.cat([one.rest for one in self._kept]).view(shape[:2])[:count],
        )


def _check_finite(directory: Path, shard: int, answers: Answers) -> None:
    """Of a `top_k` store of the whole vocabulary the rest is nothing, so only NaN is refused."""
    broken = answers.log_probs.isnan().any(-1) | answers.rest.isnan()
    if broken.any():
        raise UserError(
            directory, f"NaN as the teacher's answer at {int(broken.sum())} positions of shard "
            f"{shard}", "probabilities",
            "Evaluate the checkpoint; if it is sound, capture in another precision.",
        )  # fmt: skip


class _Progress:
    """Lines on the first rank's console."""

    def __init__(self, wanted: WantedStore, missing: list[int]) -> None:
        self._wanted = wanted
        self._left = sum(wanted.layout.samples_of(shard) for shard in missing)
        self._done_before = wanted.layout.samples - self._left
        self._done = 0
        self._started = time.monotonic()
        if self._done_before and missing:
            self._say(f"goes on after {self._done_before:,} samples")

    def written(self, shards: Sequence[int]) -> None:
        """These shards are on the disk."""
        layout = self._wanted.layout
        samples = sum(layout.samples_of(shard) for shard in shards)
        self._done += samples
        self._left -= samples
        per_second = self._done / (time.monotonic() - self._started)
        left = timedelta(seconds=round(self._left / per_second))
        self._say(
            f"{self._done_before + self._done:,} of {layout.samples:,} samples, "
            f"{per_second * layout.positions:,.0f} tokens/s, {left} left"
        )

    def _say(self, text: str) -> None:
        if world_rank() == 0:
            print(f"  {self._wanted.name}: {text}", flush=True)
