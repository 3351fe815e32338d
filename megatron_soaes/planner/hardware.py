"""What connects the GPUs of `recipe.gpus.GPUS`, and how fast their memory is.

Figures are NVIDIA's datasheets of the SXM boards (of the PCIe board for the L40S), not
measurements; NVLink in one direction, which is half of what a datasheet adds up. The network is
that of NVIDIA's own system with such GPUs, or an assumption where there is none, and says which.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_soaes.recipe.gpus import GPUS


@dataclass(frozen=True)
class Links:
    """Figures of one GPU beside those of its tensor cores."""

    nvlink_gb_s: float
    """To the other GPUs of its node, in one direction, GB/s."""
    network_gbit_s: float
    """To other nodes, each GPU's share of the node's adapters, Gbit/s."""
    memory_gb_s: float
    """Of its own memory, GB/s."""
    fp32_tflops: float
    """Outside the tensor cores, TFLOP/s: what PyTorch's fp32 products take by default."""


LINKS: dict[str, Links] = {
    # NVLink 3, 600 GB/s both ways; DGX A100: eight HDR adapters of 200 Gbit/s for eight GPUs.
    "a100-40g": Links(300, 200, 1555, 19.5),
    "a100-80g": Links(300, 200, 2039, 19.5),
    # As the A100 with NVLink cut to 400 GB/s both ways.
    "a800-80g": Links(200, 200, 2039, 19.5),
    # No NVLink: PCIe 4.0 x16, 32 GB/s in one direction. The network is assumed.
    "l40s-48g": Links(32, 100, 864, 91.6),
    # The compute of a Hopper cut down, its links whole. The network is assumed to be the H100's.
    "h20-96g": Links(450, 400, 4000, 44),
    # NVLink 4, 900 GB/s both ways; DGX H100: eight ConnectX-7 of 400 Gbit/s for eight GPUs.
    "h100-80g": Links(450, 400, 3350, 67),
    # As the H100 with NVLink cut to 400 GB/s both ways.
    "h800-80g": Links(200, 400, 3350, 67),
    "h200-141g": Links(450, 400, 4800, 67),
    # NVLink 5, 1,800 GB/s both ways; DGX B200: 400 Gbit/s a GPU.
    "b200-180g": Links(900, 400, 8000, 75),
}

LINK_REACHED = 0.8
"""Assumed: share of a link's figure that large NCCL exchanges reach, NVLink and network."""
MEMORY_REACHED = 0.8
"""Assumed: share of the memory's figure that elementwise kernels reach."""


@dataclass(frozen=True)
class Rates:
    """What one GPU does in a second at best: FLOP/s by arithmetic, bytes/s of memory and links."""

    bf16: float
    fp8: float | None
    fp32: float
    memory: float
    nvlink: float
    network: float


def rates_of(gpu_kind: str) -> Rates:
    """Of one kind in `GPUS`; tensor cores by the datasheet, memory and links as reached.

    Raises KeyError for a kind that is not there: the recipe's cluster check refuses it first.
    """
    gpu, links = GPUS[gpu_kind], LINKS[gpu_kind]
    return Rates(
        bf16=gpu.bf16_tflops * 1e12,
        fp8=None if gpu.fp8_tflops is None else gpu.fp8_tflops * 1e12,
        fp32=links.fp32_tflops * 1e12,
        memory=links.memory_gb_s * 1e9 * MEMORY_REACHED,
        nvlink=links.nvlink_gb_s * 1e9 * LINK_REACHED,
        network=links.network_gbit_s / 8 * 1e9 * LINK_REACHED,
    )
