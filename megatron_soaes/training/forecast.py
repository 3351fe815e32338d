"""What the planner said of a stage, beside what it then took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_soaes.accelerator.device import this_device

GIB = 2**30


@dataclass(frozen=True)
class Forecast:
    """What was planned."""

    memory_bytes: tuple[int, ...]
    """Tensors of a rank of each pipeline stage."""
    tokens_per_second: float | None
    """Of all ranks together; None for a machine that the planner has no figures of."""


def peak_memory() -> list[int]:
    """The most bytes that any rank of each pipeline stage has used so far (collective).

    On a GPU those of its allocator, on a CPU those of the whole process.
    """
    device = this_device()
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    peaks = torch.zeros(stages, dtype=torch.int64, device=device.torch_device)
    peaks[parallel_state.get_pipeline_model_parallel_rank()] = device.peak_memory_bytes()
    torch.distributed.all_reduce(peaks, op=torch.distributed.ReduceOp.MAX)
    return [int(peak) for peak in peaks.tolist()]


def compared(forecast: Forecast, peaks: list[int], tokens_per_second: float) -> dict[str, Any]:
    """Both, as metrics of the stage."""
    return {
        "planned_memory_gib": [planned / GIB for planned in forecast.memory_bytes],
        "peak_memory_gib": [peak / GIB for peak in peaks],
        "planned_tokens_per_second": forecast.tokens_per_second,
        "tokens_per_second": tokens_per_second,
    }


def told(figures: dict[str, Any]) -> list[str]:
    """The same in words, a line for each pipeline stage and one for the speed."""
    pairs = zip(figures["planned_memory_gib"], figures["peak_memory_gib"], strict=True)
    of_what = "" if this_device().is_cuda else " of the whole process"
    lines = [
        f"  memory of pipeline stage {stage}: planned {planned:.2f} GiB of tensors, "
        f"peak {peak:.2f} GiB{of_what}"
        for stage, (planned, peak) in enumerate(pairs)
    ]
    planned = figures["planned_tokens_per_second"]
    expected = "no plan for this machine" if planned is None else f"planned {planned:,.0f}"
    return [*lines, f"  tokens/s: {expected}, reached {figures['tokens_per_second']:,.0f}"]
