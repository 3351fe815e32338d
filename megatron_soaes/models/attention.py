"""Core attention on torch's SDPA kernels, for layer specs without Transformer Engine."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class SDPACoreAttention(MegatronModule):
    """Causal grouped-query attention; documents of a packed sequence do not see each other.

    Stands where Megatron-Core's DotProductAttention would (which makes full score matrices and
    refuses packed sequences). Packed documents are attended one after the other with the causal
    kernel: 3 to 14 times faster on CPU than one call with a block-diagonal mask.
    """

    def __init__(  # noqa: PLR0917 - Megatron-Core's interface
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: object = None,
    ) -> None:
        super().__init__(config=config)
        if config.context_parallel_size != 1:
            raise ValueError(
                "SDPACoreAttention does not split sequences over context-parallel ranks"
            )
        self.softmax_scale = softmax_scale

    def forward(  # noqa: PLR0917 - Megatron-Core's interface
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        query: [s, b, heads, dim] ([t, heads, dim] when packed); key, value: the same with KV heads.
        Returns [s, b, heads * dim] ([t, heads * dim] when packed). An explicit mask or bias is
        refused: what may be seen follows from causality and `packed_seq_params` alone.
        """
        if attention_mask is not None or attention_bias is not None:
            raise ValueError("SDPACoreAttention takes no explicit mask or bias")
        if packed_seq_params is None:
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            out = self._causal(q, k, v).permute(2, 0, 1, 3)
            return out.reshape(*out.shape[:2], -1)
        ends = packed_seq_params.cu_seqlens_q.tolist()
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        documents = [
            self._causal(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b]) for a, b in pairwise(ends)
        ]
        out = torch.cat(documents, dim=2)[0].transpose(0, 1)
        return out.reshape(out.shape[0], -1)

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: [b, heads, s, dim], k and v: [b, KV heads, s, dim] -> [b, heads, s, dim]."""
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=grouped
        )

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """No parameters, so nothing to save."""
        return {}
