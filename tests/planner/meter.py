"""What autograd and the pipeline schedule really hold, measured while a model runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_soaes.data.sample import MicroBatch
from megatron_soaes.models.build import BuildOptions, dtype_named
from megatron_soaes.planner.workload import Workload
from megatron_soaes.training.engine import Engine, build_chunks, build_engine
from megatron_soaes.training.objective import CrossEntropy
from megatron_soaes.training.step import run_schedule, train_step
from tests.training.material import make_stage


class Meter:
    """Bytes of the storages that are held, each once; those of the parameters do not count."""

    def __init__(self, parameters: Iterator[Tensor]) -> None:
        self._parameters = {_storage(one) for one in parameters}
        self._held: dict[int, list[Tensor]] = {}
        self._sent: list[weakref.ref[Tensor]] = []
        self.saved = 0
        """The most at once of what forward passes saved."""
        self.most = 0
        """The same with what backward passes computed again."""

    @property
    def bytes(self) -> int:
        """As much as they take now: some are emptied while they are held."""
        sent = (output() for output in self._sent)
        held = [tensors[0] for tensors in self._held.values()]
        # The schedule leaves one number of what it has sent on.
        held += [output for output in sent if output is not None and output.numel() > 1]
        return sum(tensor.untyped_storage().nbytes() for tensor in held)

    def take(self, tensor: Tensor) -> None:
        if _storage(tensor) not in self._parameters:
            self._held.setdefault(_storage(tensor), []).append(tensor)
            self._note()

    def watch(self, output: Tensor) -> None:
        """Count a pass's output for as long as the schedule lets it live."""
        self._sent.append(weakref.ref(output))
        self._note()

    def _note(self) -> None:
        self.most = max(self.most, self.bytes)
        if torch._C._current_graph_task_id() == -1:
            self.saved = max(self.saved, self.bytes)

    def give_back(self, tensor: Tensor) -> None:
        tensors = self._held.get(_storage(tensor), [])
        if tensors:
            tensors.pop()
        if not tensors:
            self._held.pop(_storage(tensor), None)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@dataclass
class _Saved:
    """One tensor that autograd saved; gone when autograd lets it go."""

    meter: Meter
    tensor: Tensor

    def __post_init__(self) -> None:
        self.meter.take(self.tensor)

    def __del__(self) -> None:
        self.meter.give_back(self.tensor)


@contextmanager
def metered(chunks: Sequence[GPTModel]) -> Iterator[Meter]:
    """Count what is saved within the block, and the hidden states between pipeline stages.

    The schedule holds on to those that came into a pass until its backward has ended; those that
    went out it may let go of once they are sent.
    """
    meter = Meter(parameter for chunk in chunks for parameter in chunk.parameters())

    def hold(chunk: GPTModel, inputs: Any, output: Tensor) -> None:
        if not chunk.post_process:
            meter.watch(output)
        came_in = [] if chunk.pre_process else [chunk.decoder.input_tensor]
        # Autograd's node lives as long as the schedule holds on to the pass.
        assert output.grad_fn is not None
        notes: dict[Any, Any] = output.grad_fn.metadata  # type: ignore[assignment]
        notes["held"] = [_Saved(meter, tensor.detach()) for tensor in came_in]

    hooks = [chunk.register_forward_hook(hold) for chunk in chunks]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: _Saved(meter, tensor), lambda saved: saved.tensor
    ):
        yield meter
    for hook in hooks:
        hook.remove()


def build(workload: Workload) -> list[GPTModel]:
    """The chunks of this rank in the layout that is active, with weights that are finite."""
    options = BuildOptions(
        dtype_named(workload.precision.dtype),
        workload.vocab_size,
        workload.layout,
        workload.recompute,
        workload.kernels,
    )
    chunks = build_chunks(workload.shape, options)
    for chunk in chunks:
        for parameter in chunk.parameters():
            torch.nn.init.ones_(parameter)
    return chunks


def micro_batch(workload: Workload) -> MicroBatch:
    """Samples of one document each, as long as can be."""
    tokens = torch.zeros(1, workload.tokens, dtype=torch.int64)
    bounds = torch.arange(0, workload.tokens + 1, workload.sequence_length, dtype=torch.int32)
    weights = torch.ones(1, workload.tokens)
    places = torch.arange(workload.tokens)
    return MicroBatch(
        tokens, tokens.clone(), weights, bounds, workload.sequence_length, (0,), places
    )


def measure(workload: Workload) -> Meter:
    """What this rank holds in a step of Megatron-Core's own schedule (collective)."""
    chunks = build(workload)
    batches = [micro_batch(workload) for _ in range(workload.micro_batches)]
    objective = CrossEntropy(workload.shape.vocab_size)
    with metered(chunks) as meter:
        run_schedule(chunks, objective, batches, float(workload.tokens), train=True)
    return meter


def trained(workload: Workload) -> Engine:
    """An engine in the layout that is active, after one step on its own."""
    stage = make_stage(
        precision=workload.precision.model_dump(),
        global_batch_size=workload.global_batch_size,
        sequence_length=workload.sequence_length,
    )
    engine = build_engine(workload.shape, build(workload), stage, steps=2)
    batches = [micro_batch(workload) for _ in range(workload.micro_batches)]
    objective = CrossEntropy(workload.shape.vocab_size)
    train_step(engine, objective, batches, workload.global_batch_size, stop_here=False)
    return engine


def live(engine: Engine) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state between two steps."""
    buffers = [buffer for one in engine.wrapped for buffer in one.buffers]
    weights = {_storage(buffer.param_data): buffer.param_data for buffer in buffers}
    optimizers = engine.optimizer.chained_optimizers
    state = [
        tensor
        for one in optimizers
        for parameter in one.get_parameters()
        for tensor in (parameter, *one.optimizer.state[parameter].values())
        if _storage(tensor) not in weights
    ]
    return {
        "weights": sum(tensor.nbytes for tensor in weights.values()),
        "gradients": sum(buffer.grad_data.nbytes for buffer in buffers),
        "optimizer": sum(tensor.nbytes for tensor in state),
    }
