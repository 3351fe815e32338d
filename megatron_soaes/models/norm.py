"""RMSNorm for layer specs without Transformer Engine."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm behind Megatron-Core's constructor, aware of sequence parallelism.

    Under sequence parallelism each tensor-parallel rank sees a part of the tokens, so the gradient
    of the weight must be summed over those ranks; Megatron-Core does that for every parameter that
    carries the mark `sequence_parallel`. (The core's own wrapper refuses sequence parallelism.)
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: object
    ) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
