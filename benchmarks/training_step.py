"""Whole training steps on one device: this codebase's, and `transformers` as the peer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers

from benchmarks.subject import Subject
from megatron_soaes.accelerator.device import this_device
from megatron_soaes.accelerator.groups import (
    Rendezvous,
    model_parallel,
    process_group,
    seed_step,
)
from megatron_soaes.data.sample import MicroBatch
from megatron_soaes.models.build import BuildOptions, dtype_named
from megatron_soaes.planner.memory import rank_memory
from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.schema import CPTStage
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.engine import build_chunks, build_engine
from megatron_soaes.training.objective import CrossEntropy
from megatron_soaes.training.step import train_step

LR = 1e-4
MULTIPLE = 128
INIT_STD = 0.02
FUSED = {"swiglu": True, "rope": True, "cross_entropy": True}
"""Ours with fused kernels: those that need neither apex nor a shape that never changes."""
IN_BF16 = {"main_gradients": "bf16", "first_moment": "bf16"}
"""The second moment stays fp32: in bf16 it would be widened for all weights at once in each update
(Transformer Engine's FusedAdam), 28 GiB more of a 7B model than it saves for good."""


@dataclass(frozen=True)
class Figures:
    """What one measurement found."""

    seconds_per_step: float
    """Median over the measured steps."""
    peak_memory_bytes: int
    first_loss: float
    last_loss: float
    """Of the last measured step, in nats: evidence that the steps trained."""
    planned_memory_bytes: int | None = None
    """What the planner says of ours; None for the peer."""


def ours(
    subject: Subject, dtype: str = "bf16", fp8: str | None = None, *, fused: bool = False
) -> Figures:
    """Steps of this codebase, with an FP8 recipe on top where one is named."""
    stage = _stage(subject, dtype, fp8, fused=fused)
    with _step_of(stage, subject) as step:
        return replace(measure(subject, step), planned_memory_bytes=_planned(subject, stage))


def _planned(subject: Subject, stage: CPTStage) -> int:
    """What our steps allocate at most as the planner has it, for Transformer Engine's layers.

    Nothing is saved here, so what the planner counts for a save is left out.
    """
    workload = Workload(
        subject.shape,
        subject.shape.padded_vocab_size(MULTIPLE),
        Layout(),
        subject.sequence_length,
        subject.micro_batch_size,
        stage.global_batch_size,
        stage.precision,
        kernels=stage.kernels,
        optimizer=stage.optimizer,
    )
    memory = rank_memory(workload, 0)
    return memory.lasting + max(memory.activations + memory.logits, memory.updating)


def transformers_peer(subject: Subject) -> Figures:
    """Steps of `transformers`, all in bf16."""
    return measure(subject, transformers_step(subject, "bf16"))


@contextmanager
def our_step(subject: Subject, dtype: str) -> Iterator[Callable[[int], float]]:
    """Forward, backward and update through Megatron-Core; the number of a step to its loss.

    Main weights, gradients and optimizer state are fp32, as in every training stage, unless the
    subject is to be trained precision-aware.
    """
    with _step_of(_stage(subject, dtype, None), subject) as step:
        yield step


@contextmanager
def _step_of(stage: CPTStage, subject: Subject) -> Iterator[Callable[[int], float]]:
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        engine = build_engine(subject.shape, _chunks(subject, stage), stage, stage.steps)
        fused = stage.kernels.cross_entropy
        objective = CrossEntropy(subject.shape.vocab_size, fused=fused)

        def step(number: int) -> float:
            seed_step(1, number)
            batches = _batches(subject, number)
            return train_step(engine, objective, batches, len(batches), False).loss

        yield step


def transformers_step(subject: Subject, dtype: str) -> Callable[[int], float]:
    """The same model and tokens in `transformers` with SDPA and a fused AdamW.

    Weights, gradients and optimizer state are all of `dtype`: in bf16 less work and memory than
    ours, the way it is used where speed counts. On a GPU its layers are compiled (torch.compile,
    one compilation for all of them).
    """
    shape = subject.shape
    # Not `this_device()`: the peer runs as `transformers` alone would, without our settings.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = transformers.Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.max_position,
        tie_word_embeddings=shape.tied_embeddings,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        attn_implementation="sdpa",
    )
    # Random weights of billions of parameters take minutes on a CPU.
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype_named(dtype))
    model.train()
    if device.type == "cuda":
        for layer in model.model.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)

    def step(number: int) -> float:
        total = torch.zeros((), device=device)
        for tokens in subject.tokens(number, device):
            # `labels` would be shifted by one inside; the labels here are shifted already.
            logits = model(tokens[:, :-1], use_cache=False).logits.float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            torch.autograd.backward(loss / subject.micro_batches)
            total += loss.detach() / subject.micro_batches
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(total)

    return step


def measure(subject: Subject, step: Callable[[int], float]) -> Figures:
    """Time `step(1)`, `step(2)`, ... after the warm-up; each returns its loss."""
    device = this_device()
    losses, times = [], []
    for number in range(1, subject.warm_up + subject.steps + 1):
        device.synchronize()
        started = time.perf_counter()
        losses.append(step(number))
        device.synchronize()
        times.append(time.perf_counter() - started)
    measured = sorted(times[subject.warm_up :])
    return Figures(measured[len(measured) // 2], device.peak_memory_bytes(), losses[0], losses[-1])


def _stage(subject: Subject, dtype: str, fp8: str | None, *, fused: bool = False) -> CPTStage:
    return CPTStage.model_validate(
        {
            "name": "benchmark",
            "kind": "cpt",
            "blend": "synthetic",
            "steps": subject.warm_up + subject.steps,
            "sequence_length": subject.sequence_length,
            "micro_batch_size": subject.micro_batch_size,
            "global_batch_size": subject.micro_batches * subject.micro_batch_size,
            "precision": {"dtype": dtype, "fp8": {"recipe": fp8} if fp8 else None},
            "optimizer": {
                "lr": LR,
                "precision_aware": IN_BF16 if subject.precision_aware else None,
            },
            "schedule": {"shape": "constant"},
            "kernels": FUSED if fused else {},
        }
    )


@torch.no_grad()
def _chunks(subject: Subject, stage: CPTStage) -> list[Any]:
    """The model with random weights: products normal, norms 1, biases 0."""
    rows = subject.shape.padded_vocab_size(MULTIPLE)
    precision = stage.precision
    dtype = dtype_named(precision.dtype)
    options = BuildOptions(dtype, rows, kernels=stage.kernels, fp8=precision.fp8)
    chunks = build_chunks(subject.shape, options)
    torch.manual_seed(1)
    for name, parameter in chunks[0].named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=INIT_STD)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return chunks


def _batches(subject: Subject, step: int) -> list[MicroBatch]:
    """Each window is one document; the windows of a micro-batch lie end to end."""
    device = this_device().torch_device
    length, count = subject.sequence_length, subject.micro_batch_size
    bounds = torch.arange(0, (count + 1) * length, length, dtype=torch.int32, device=device)
    weights = torch.ones(1, count * length, device=device)
    return [
        MicroBatch(
            inputs=tokens[:, :-1].reshape(1, -1),
            labels=tokens[:, 1:].reshape(1, -1),
            loss_weights=weights,
            cu_seqlens=bounds,
            longest=length,
            sources=(0,) * count,
            places=torch.arange(count * length, device=device),
        )
        for tokens in subject.tokens(step, device)
    ]
