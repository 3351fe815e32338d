"""GPU kinds a recipe may name: memory, dense peak rates and what their tensor cores can do.

Figures are NVIDIA's datasheets, dense (no sparsity): memory in GiB as sold, rates in TFLOP/s.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_soaes.accelerator.machine import FP8_RECIPES, Generation


@dataclass(frozen=True)
class GPU:
    """One kind of GPU."""

    generation: Generation
    memory_gib: int
    bf16_tflops: float
    fp8_tflops: float | None

    @property
    def fp8_recipes(self) -> tuple[str, ...]:
        """FP8 recipes of Transformer Engine that this kind can run."""
        return FP8_RECIPES[self.generation]


GPUS: dict[str, GPU] = {
    "a100-40g": GPU("ampere", 40, 312, None),
    "a100-80g": GPU("ampere", 80, 312, None),
    "a800-80g": GPU("ampere", 80, 312, None),
    "l40s-48g": GPU("ada", 48, 362, 733),
    "h20-96g": GPU("hopper", 96, 148, 296),
    "h100-80g": GPU("hopper", 80, 989.5, 1979),
    "h800-80g": GPU("hopper", 80, 989.5, 1979),
    "h200-141g": GPU("hopper", 141, 989.5, 1979),
    "b200-180g": GPU("blackwell", 180, 2250, 4500),
}
