"""What is known when a loss or a gradient is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_soaes import files
from megatron_soaes.accelerator.groups import world_rank
from megatron_soaes.data.sample import MicroBatch
from megatron_soaes.training.engine import Engine
from megatron_soaes.training.step import StepResult

REPORTED_TOKENS = 64
"""Tokens of each micro-batch quoted in a report."""


def write_report(
    directory: Path,
    step: int,
    result: StepResult,
    *,
    engine: Engine,
    batches: Sequence[MicroBatch],
    positions: Sequence[Sequence[int]],
    sources: Sequence[str],
) -> Path:
    """Describe this rank's part of a step that was skipped; returns the file.

    Names the samples (position in the blend and dataset) and the parameters whose gradient is not
    finite on this rank: enough to look the text up and to see where it began.
    """
    damaged = [
        name
        for chunk in engine.chunks
        for name, parameter in chunk.named_parameters()
        if not bool(torch.isfinite(parameter.main_grad).all())
    ]
    report = {
        "step": step,
        "rank": world_rank(),
        "loss": repr(result.loss),
        "grad_norm": repr(result.grad_norm),
        "parameters_with_non_finite_gradient": damaged,
        "micro_batches": [
            {
                "sample_positions": list(where),
                "datasets": [sources[source] for source in batch.sources],
                "first_tokens": batch.inputs[0, :REPORTED_TOKENS].tolist(),
                "weights_finite": bool(torch.isfinite(batch.loss_weights).all()),
            }
            for batch, where in zip(batches, positions, strict=True)
        ],
    }
    file = directory / f"step_{step:07d}_rank{world_rank()}.json"
    files.write_json(file, report)
    return file
