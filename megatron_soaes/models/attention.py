"""Core attention on torch's SDPA kernels, for layer specs without Transformer Engine."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_soaes.models.zigzag import chunks_of_rank, gathered_order


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
        Under context parallelism t counts this rank's tokens, in the order of `zigzag`.
        Returns [s, b, heads * dim] ([t, heads * dim] when packed). An explicit mask or bias is
        refused: what may be seen follows from causality and `packed_seq_params` alone.
        """
        if attention_mask is not None or attention_bias is not None:
            raise ValueError("SDPACoreAttention takes no explicit mask or bias")
        if packed_seq_params is None:
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            out = self._causal(q, k, v).permute(2, 0, 1, 3)
            return out.reshape(*out.shape[:2], -1)
        if self.config.context_parallel_size > 1:
            return self._over_context_ranks(query, key, value, packed_seq_params)
        ends = packed_seq_params.cu_seqlens_q.tolist()
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        documents = [
            self._causal(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b]) for a, b in pairwise(ends)
        ]
        return _packed(documents)

    def _over_context_ranks(
        self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams
    ) -> Tensor:
        """Attend with this rank's queries to the keys of all context-parallel ranks.

        Keys and values are gathered whole (their gradient is reduce-scattered) and put back into
        the order of the packed sequence; each chunk of queries sees its document up to itself.
        """
        group = parallel_state.get_context_parallel_group()
        ends = packed.cu_seqlens_q.tolist()
        order = _kept_order(packed.cu_seqlens_q, group.size()).to(query.device)
        k, v = (
            gather_from_sequence_parallel_region(x, group=group)[order].transpose(0, 1).unsqueeze(0)
            for x in (key, value)
        )
        q = query.transpose(0, 1).unsqueeze(0)
        parts, done = [], 0
        for chunk in chunks_of_rank(ends, group.rank(), group.size()):
            end = chunk.start + chunk.length
            keys, values = k[:, :, chunk.document : end], v[:, :, chunk.document : end]
            parts.append(self._causal(q[:, :, done : done + chunk.length], keys, values))
            done += chunk.length
        return _packed(parts)

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: [b, heads, s, dim], k and v: [b, KV heads, n >= s, dim] -> [b, heads, s, dim].

        The queries are the last s of the n positions.
        """
        mask = None
        if q.shape[2] < k.shape[2]:
            # The kernel's own causal mask would take the queries for the first s positions.
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            mask = mask.tril(k.shape[2] - q.shape[2])
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, scale=self.softmax_scale, enable_gqa=grouped
        )

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """No parameters, so nothing to save."""
        return {}


def _kept_order(cu_seqlens: Tensor, ranks: int) -> Tensor:
    """`gathered_order`, found by the first layer and kept with the micro-batch for the others."""
    kept: Tensor | None = getattr(cu_seqlens, "gathered_order", None)
    if kept is None:
        kept = gathered_order(cu_seqlens.tolist(), ranks)
        cu_seqlens.gathered_order = kept  # type: ignore[attr-defined]
    return kept


def _packed(parts: list[Tensor]) -> Tensor:
    """Parts [1, heads, s, dim] of a packed sequence, laid end to end as [t, heads * dim]."""
    out = torch.cat(parts, dim=2)[0].transpose(0, 1)
    return out.reshape(out.shape[0], -1)
