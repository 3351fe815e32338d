"""Token losses against torch's cross entropy on the vocabulary without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_soaes.accelerator.launch import launch
from megatron_soaes.losses import vocab_parallel
from megatron_soaes.losses.cross_entropy import token_losses

PADDED = 64


def make_case(vocab_size: int, scale: float = 3.0) -> dict[str, Any]:
    """Logits [2, 5, padded vocabulary]; those of the padding are as large as the others."""
    generator = torch.Generator().manual_seed(vocab_size)
    labels = torch.randint(vocab_size, (2, 5), generator=generator)
    labels[0, 0], labels[0, 1] = 0, vocab_size - 1
    logits = torch.randn(2, 5, PADDED, generator=generator) * scale
    return {"logits": logits, "labels": labels, "vocab_size": vocab_size}


CASES = {
    "no-padding": make_case(64),
    "a-little-padding": make_case(59),
    "second-rank-all-padding": make_case(32),
    "first-rank-padded-too": make_case(20),
    "large-logits": make_case(59, scale=200.0),
}


def reference(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Losses and the gradient of their sum; the padding has no part in it."""
    logits = case["logits"].clone().requires_grad_()
    real = logits[..., : case["vocab_size"]].flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(real, case["labels"].flatten(), reduction="none")
    losses.sum().backward()
    assert logits.grad is not None
    return losses.detach().view(2, 5), logits.grad


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("losses")
    torch.save(CASES, folder / "cases.pt")
    code = launch("tests.losses.two_ranks", [str(folder)], 2, folder / "logs")
    assert code == 0, (folder / "logs" / "rank1.log").read_text(encoding="utf-8")
    return folder


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", CASES)
def test_one_rank(name: str) -> None:
    case = CASES[name]
    logits = case["logits"].clone().requires_grad_()
    losses = token_losses(logits, case["labels"], case["vocab_size"])
    losses.sum().backward()
    expected, gradient = reference(case)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(logits.grad, gradient)
    assert not logits.grad[..., case["vocab_size"] :].any()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_losses_are_the_same(dtype: torch.dtype) -> None:
    case = CASES["a-little-padding"]
    logits = case["logits"].to(dtype, copy=True).requires_grad_()
    losses = token_losses(logits, case["labels"], case["vocab_size"], fused=True)
    losses.sum().backward()
    expected, gradient = reference(case | {"logits": logits.detach().float()})
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(logits.grad, gradient.to(dtype))
    assert not logits.grad[..., case["vocab_size"] :].any()


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_that_share_the_vocabulary(two_ranks: Path, name: str) -> None:
    case = CASES[name]
    expected, gradient = reference(case)
    ranks = [torch.load(two_ranks / f"{name}_rank{rank}.pt") for rank in (0, 1)]
    for rank in ranks:
        torch.testing.assert_close(rank["losses"], expected)
    found = torch.cat([rank["gradient"] for rank in ranks], dim=-1)
    torch.testing.assert_close(found, gradient)
    assert not found[..., case["vocab_size"] :].any()


@pytest.mark.usefixtures("one_process")
def test_the_logits_are_left_as_they_were() -> None:
    case = CASES["no-padding"]
    logits = case["logits"].clone()
    token_losses(logits, case["labels"], case["vocab_size"])
    assert torch.equal(logits, case["logits"])


@pytest.mark.usefixtures("one_process")
def test_bf16_logits_are_summed_in_fp32() -> None:
    case = CASES["a-little-padding"]
    rounded = case["logits"].bfloat16()
    losses = token_losses(rounded, case["labels"], case["vocab_size"])
    expected, _ = reference(case | {"logits": rounded.float()})
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)


@pytest.mark.usefixtures("one_process")
def test_padding_would_count_if_it_were_left_in() -> None:
    case = CASES["a-little-padding"]
    losses = token_losses(case["logits"].clone(), case["labels"], PADDED)
    assert (losses - reference(case)[0] > 1e-4).all()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("rows", [1, 3])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    case = CASES["a-little-padding"]
    monkeypatch.setitem(vocab_parallel.CHUNK_BYTES, "cpu", rows * 4 * PADDED)
    logits = case["logits"].clone().requires_grad_()
    losses = token_losses(logits, case["labels"], case["vocab_size"])
    losses.sum().backward()
    expected, gradient = reference(case)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(logits.grad, gradient)
