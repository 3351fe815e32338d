"""GPU kinds a recipe may name: memory, dense peak rates and what their tensor cores can do.

Rates are NVIDIA's datasheets, dense (no sparsity), in TFLOP/s. Memory is what a CUDA process finds,
in whole GiB: ECC and the driver keep some of what is sold. Seen in the messages of PyTorch that
users quote: A100 39.50 (TianheWu/CoSeR#10), H100 79.11 (vllm-project/vllm#27508), L40S 44.42
(stepfun-ai/Step-Video-T2V#8), B200 178.35 (unslothai/unsloth#3411); others from that of their kin.
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
    "a100-40g": GPU("ampere", 39, 312, None),
    "a100-80g": GPU("ampere", 79, 312, None),
    "a800-80g": GPU("ampere", 79, 312, None),
    "l40s-48g": GPU("ada", 44, 362, 733),
    "h20-96g": GPU("hopper", 95, 148, 296),
    "h100-80g": GPU("hopper", 79, 989.5, 1979),
    "h800-80g": GPU("hopper", 79, 989.5, 1979),
    "h200-141g": GPU("hopper", 139, 989.5, 1979),
    "b200-180g": GPU("blackwell", 178, 2250, 4500),
}
