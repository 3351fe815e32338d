"""Rotary position embedding of packed sequences for a CPU."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


class Rotation(torch.autograd.Function):
    """Rotate pairs (x[i], x[i + dim / 2]) by an angle each (Su et al. 2104.09864, halves form)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [t, heads, dim]; cos, sin: [t, 1, dim / 2] -> [t, heads, dim]."""
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The inverse rotation of the gradient."""
        cos, sin = ctx.saved_tensors
        return _rotate(gradients[0], cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    out = torch.empty_like(x)
    left, right = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
    return out


@functools.cache
def install() -> None:
    """Rotate packed queries and keys with tables made once a micro-batch.

    Megatron-Core 0.16.1 cuts every query and key of every layer at the documents, glues frequencies
    together and takes their sines anew; without Transformer Engine's fused kernel that is about a
    tenth of a small model's step. Its own function still serves everything that is not packed.
    """
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.transformer import attention

    original = attention.apply_rotary_pos_emb

    @functools.wraps(original)
    def apply(
        t: Tensor, freqs: Tensor, config: Any, cu_seqlens: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        whole = freqs.shape[-1] == t.shape[-1]
        if cu_seqlens is None or config.rotary_interleaved or not whole:
            return original(t, freqs, config, cu_seqlens=cu_seqlens, **kwargs)
        cos, sin = _tables(t, freqs, cu_seqlens, kwargs["cp_group"])
        return Rotation.apply(t, cos, sin)  # type: ignore[no-untyped-call]

    def _tables(t: Tensor, freqs: Tensor, cu_seqlens: Tensor, group: Any) -> tuple[Tensor, Tensor]:
        # Kept with the micro-batch they belong to, and freed with it. Two models may read the same
        # micro-batch, each with frequencies of its own; those are kept so that no other tensor
        # takes their place in memory.
        kept = getattr(cu_seqlens, "rotary_tables", None)
        if kept is None or kept[0].dtype != t.dtype or kept[2].data_ptr() != freqs.data_ptr():
            angles = _packed_angles(freqs, cu_seqlens, group)
            kept = (angles.cos().to(t.dtype), angles.sin().to(t.dtype), freqs)
            cu_seqlens.rotary_tables = kept  # type: ignore[attr-defined]
        return kept[:2]

    def _packed_angles(freqs: Tensor, cu_seqlens: Tensor, group: Any) -> Tensor:
        """[t, 1, dim / 2] angles of this rank's tokens, restarting at each document."""
        half = freqs[:, 0, :, : freqs.shape[-1] // 2]
        lengths = (cu_seqlens.diff() // group.size()).tolist()
        parts = [
            rope_utils._get_thd_freqs_on_this_cp_rank(
                group.rank(), group.size(), half[:length], half
            )
            for length in lengths
        ]
        return torch.cat(parts)

    attention.apply_rotary_pos_emb = apply
