"""Our rotation of packed sequences is Megatron-Core's, forward and backward."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_thd
from megatron.core.transformer import attention
from torch import Tensor

from megatron_soaes.accelerator.device import this_device

CONFIG = SimpleNamespace(
    rotary_interleaved=False, multi_latent_attention=False, apply_rope_fusion=False
)


class Group:
    """One rank of a context-parallel group."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._ranks


@pytest.fixture(autouse=True)
def installed() -> None:
    this_device()


def inputs(tokens: int, longest: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 3, dim, generator=generator)
    angles = torch.outer(torch.arange(longest).float(), 10.0 ** -torch.arange(dim / 2))
    return x, torch.cat((angles, angles), dim=-1)[:, None, None, :]


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2)])
def test_rotation_and_gradient(rank: int, ranks: int) -> None:
    cu_seqlens = torch.tensor([0, 4, 16, 24], dtype=torch.int32)
    x, freqs = inputs(24 // ranks, longest=12)
    group = Group(rank, ranks)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    rotated = attention.apply_rotary_pos_emb(
        ours, freqs, config=CONFIG, cu_seqlens=cu_seqlens, mscale=1.0, cp_group=group
    )
    expected = _apply_rotary_pos_emb_thd(theirs, cu_seqlens, freqs, cp_group=group)
    torch.testing.assert_close(rotated, expected)
    weights = torch.randn(rotated.shape, generator=torch.Generator().manual_seed(1))
    (rotated * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_tables_follow_the_dtype() -> None:
    cu_seqlens = torch.tensor([0, 6, 10], dtype=torch.int32)
    x, freqs = inputs(10, longest=6)
    group = Group(0, 1)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        rotated = attention.apply_rotary_pos_emb(
            x.to(dtype), freqs, config=CONFIG, cu_seqlens=cu_seqlens, mscale=1.0, cp_group=group
        )
        assert rotated.dtype == dtype
        assert torch.equal(rotated[0], x[0].to(dtype)), "position 0 is not turned"
        assert torch.equal(rotated[6], x[6].to(dtype)), "positions restart with a document"


def test_two_models_read_one_micro_batch_each_with_its_own_frequencies() -> None:
    cu_seqlens = torch.tensor([0, 4, 16, 24], dtype=torch.int32)
    for dim, base in ((8, 10.0), (4, 10.0), (8, 500.0)):
        x = torch.randn(24, 3, dim, generator=torch.Generator().manual_seed(dim))
        angles = torch.outer(torch.arange(12).float(), base ** -torch.arange(dim / 2))
        freqs = torch.cat((angles, angles), dim=-1)[:, None, None, :]
        found = attention.apply_rotary_pos_emb(
            x, freqs, config=CONFIG, cu_seqlens=cu_seqlens, mscale=1.0, cp_group=Group(0, 1)
        )
        expected = _apply_rotary_pos_emb_thd(x, cu_seqlens, freqs, cp_group=Group(0, 1))
        torch.testing.assert_close(found, expected)
