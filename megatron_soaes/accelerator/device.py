"""The one place that says what computes here: CUDA with NCCL, or the CPU with gloo."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

from megatron_soaes.accelerator import (
    adamw,
    allocator,
    checkpoint_writer,
    cpu,
    gloo,
    remainders,
    rotary,
)


@dataclass(frozen=True)
class Device:
    """The accelerator of this process."""

    kind: str
    """"cuda" or "cpu"."""
    backend: str
    """torch.distributed backend: "nccl" or "gloo"."""
    torch_device: torch.device

    @property
    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    @property
    def has_transformer_engine(self) -> bool:
        """Whether Transformer Engine can be used; its Python part alone is not enough."""
        return self.is_cuda and find_spec("transformer_engine_torch") is not None

    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def peak_memory_bytes(self) -> int:
        """Largest memory held so far: allocated on the GPU, resident in RAM for a CPU process."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@cache
def this_device() -> Device:
    """Choose and prepare this process's accelerator; the first call patches Megatron-Core."""
    if not torch.cuda.is_available():
        allocator.keep_freed_memory()
        cpu.install()
        gloo.install()
        rotary.install()
    checkpoint_writer.install()
    adamw.install()
    remainders.install()
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        torch.cuda.set_device(local_rank)
        return Device("cuda", "nccl", torch.device("cuda", local_rank))
    return Device("cpu", "gloo", torch.device("cpu"))
