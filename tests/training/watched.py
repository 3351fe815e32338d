"""A trainer that keeps what tests compare, and the comparison of two runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_soaes.accelerator.groups import world_rank
from megatron_soaes.checkpoint.directory import iteration_directory, latest_iteration
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.checkpoint.trainer_state import TrainerState
from megatron_soaes.errors import NonFiniteError
from megatron_soaes.training.engine import Engine
from megatron_soaes.training.job import TrainingJob
from megatron_soaes.training.records import METRICS_FILE, read_records
from megatron_soaes.training.step import StepResult
from megatron_soaes.training.trainer import Trainer

Meddler = Callable[["WatchedTrainer", int], None]
"""Called with the trainer and the number of the step that is about to be done."""


class WatchedTrainer(Trainer):
    """Keeps the whole gradients of its first step and a digest of the weights after each."""

    def __init__(self, job: TrainingJob, meddle: Meddler | None = None) -> None:
        super().__init__(job)
        self.gradients: dict[str, Tensor] = {}
        self.digests = [self.digest()]
        self._meddle = meddle
        config = self.engine.chunks[0].config
        config.finalize_model_grads_func = partial(self.finalize, config.finalize_model_grads_func)

    def finalize(self, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Finish a step's gradients as `original` does, and keep the first ones."""
        original(*args, **kwargs)
        if not self.gradients:
            self.gradients = whole_gradients(self.engine)

    def _step(self, step: int) -> StepResult:
        if self._meddle is not None:
            self._meddle(self, step)
        try:
            return super()._step(step)
        finally:
            self.digests.append(self.digest())

    def digest(self) -> str:
        """Hash of this rank's weights."""
        content = hashlib.sha256()
        for parameter in chain(*(chunk.parameters() for chunk in self.engine.chunks)):
            content.update(parameter.detach().float().numpy().tobytes())
        return content.hexdigest()


def run(job: TrainingJob, meddle: Meddler | None = None) -> bool | None:
    """Train and keep this rank's observations under `job.out`.

    Returns whether it was completed; None when it ended with a NonFiniteError.
    """
    trainer = WatchedTrainer(job, meddle)
    completed: bool | None = None
    try:
        completed = trainer.run().completed
    except NonFiniteError as error:
        assert str(job.out / "non_finite") in str(error)
    seen = {
        "completed": completed,
        "gradients": trainer.gradients,
        "digests": trainer.digests,
        "skipped_steps": trainer.state.skipped_steps,
    }
    job.out.mkdir(parents=True, exist_ok=True)
    torch.save(seen, job.out / f"seen_by_rank{world_rank()}.pt")
    return completed


def whole_gradients(engine: Engine) -> dict[str, Tensor]:
    """The gradient of each parameter of this rank's pipeline stage as if it were not sharded.

    By the names a model in one piece has (collective).
    """
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    gradients = {}
    for chunk, wrapped in zip(engine.chunks, engine.wrapped, strict=True):
        for buffer in wrapped.buffers:
            for bucket in buffer.buckets:
                # The reduction leaves each replica with its own part of the sum.
                own = bucket.grad_data.chunk(group.size())[group.rank()].clone()
                parts = [torch.empty_like(own) for _ in range(group.size())]
                torch.distributed.all_gather(parts, own, group=group)
                bucket.grad_data.copy_(torch.cat(parts))
        for name, parameter in chunk.named_parameters():
            gradients[_global_name(chunk, name)] = _unsharded(name, parameter)
    return gradients


def _global_name(chunk: GPTModel, name: str) -> str:
    """A parameter's name in a model in one piece; layers are numbered through all stages."""
    if name == "output_layer.weight" and chunk.share_embeddings_and_output_weights:
        return "embedding.word_embeddings.weight"
    match = re.match(r"decoder\.layers\.(\d+)\.(.*)", name)
    if match is None:
        return name
    return f"decoder.layers.{chunk.decoder.layers[int(match[1])].layer_number - 1}.{match[2]}"


def _unsharded(name: str, parameter: Tensor) -> Tensor:
    gradient: Tensor = parameter.main_grad.clone()  # type: ignore[attr-defined]
    if not getattr(parameter, "tensor_model_parallel", False):
        return gradient
    parts = [
        torch.empty_like(gradient)
        for _ in range(parallel_state.get_tensor_model_parallel_world_size())
    ]
    torch.distributed.all_gather(
        parts, gradient, group=parallel_state.get_tensor_model_parallel_group()
    )
    if name.endswith("linear_fc1.weight"):
        gates, ups = zip(*(part.chunk(2) for part in parts), strict=True)
        return torch.cat([*gates, *ups])
    return torch.cat(parts, dim=parameter.partition_dim)  # type: ignore[attr-defined]


@dataclass
class Seen:
    """A finished run, read back from its folder."""

    out: Path
    ranks: int = 1
    records: list[dict[str, Any]] = field(init=False)
    """Those of steps, not of validations."""
    seen: list[dict[str, Any]] = field(init=False)
    """By rank: completed, gradients, digests, skipped_steps."""

    def __post_init__(self) -> None:
        records = read_records(self.out / METRICS_FILE)
        self.records = [record for record in records if "loss" in record]
        self.seen = [torch.load(self.out / f"seen_by_rank{r}.pt") for r in range(self.ranks)]

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.records]

    @property
    def checkpoint(self) -> Path:
        newest = latest_iteration(self.out / "checkpoints")
        assert newest is not None
        return iteration_directory(self.out / "checkpoints", newest)

    @property
    def state(self) -> TrainerState:
        return TrainerState.read(self.checkpoint)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state of the newest checkpoint, whole."""
        reader = TorchDistReader(self.checkpoint)
        return {key: reader.read_slice(key, [0] * len(s), s) for key, s in reader.shapes.items()}


def differences(reference: Seen, other: Seen) -> list[str]:
    """Where two runs of the same job in different layouts do not agree; empty if they do.

    Losses of the steps that both did, gradients of the first step, norms, and the final weights and
    moments if both came to the end.
    """
    found = []
    for one, two in zip(reference.records, other.records, strict=False):
        assert one["step"] == two["step"]
        if abs(one["loss"] - two["loss"]) > 1e-5:
            found.append(f"loss of step {one['step']}: {one['loss']} and {two['loss']}")
        if abs(one["grad_norm"] - two["grad_norm"]) > 1e-4 * one["grad_norm"]:
            found.append(f"norm of step {one['step']}: {one['grad_norm']} and {two['grad_norm']}")
    (expected,) = [seen["gradients"] for seen in reference.seen]
    assert set().union(*(seen["gradients"] for seen in other.seen)) == expected.keys()
    for rank, seen in enumerate(other.seen):
        for name, gradient in seen["gradients"].items():
            error = relative(expected[name], gradient)
            if error > 1e-5:
                found.append(f"gradient of {name} on rank {rank}: {error:.1e} off")
    if len(reference.records) == len(other.records):
        weights = reference.tensors()
        for key, tensor in other.tensors().items():
            error = relative(weights[key], tensor)
            if error > (1e-2 if key.startswith("optimizer.") else 1e-4):
                found.append(f"final {key}: {error:.1e} off")
    return found


def relative(expected: Tensor, found: Tensor) -> float:
    """Size of the difference relative to the size of what was expected, in the L2 norm."""
    return float((found - expected).norm() / expected.norm())
