"""What the device could do at best: its datasheet, and a plain matrix product measured on it."""

from __future__ import annotations

import re
import time

import torch

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.accelerator.machine import Machine
from megatron_soaes.recipe.gpus import GPUS


def datasheet_tflops(machine: Machine) -> float | None:
    """Dense bf16 TFLOP/s of this GPU's kind, None for a CPU and for kinds we have no figure of."""
    words = set(re.findall(r"[a-z0-9]+", (machine.gpu_name or "").lower()))
    rates = [gpu.bf16_tflops for kind, gpu in GPUS.items() if kind.split("-")[0] in words]
    return rates[0] if rates else None


def measured_tflops(size: int, repeats: int = 20) -> float:
    """TFLOP/s of a square bf16 product of random matrices: the best of `repeats`."""
    device = this_device()
    left, right = (
        torch.randn(size, size, device=device.torch_device).to(torch.bfloat16) for _ in range(2)
    )
    best = float("inf")
    for _ in range(repeats):
        device.synchronize()
        started = time.perf_counter()
        torch.matmul(left, right)
        device.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e12
