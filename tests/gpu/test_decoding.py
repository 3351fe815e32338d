"""On the GPU, too, exact decoding with a draft gives the logits of plain decoding bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.decoding.interface import Sampling
from megatron_soaes.decoding.lean import LeanModel
from megatron_soaes.decoding.speculative import Speculation, SpeculativeDecoder, Step
from megatron_soaes.recipe.schema import FamilyName
from tests.gpu.material import FAMILIES, documents, make_model

LENGTHS = (20, 33, 7, 48)
NEW_TOKENS = 32
WINDOW = 8


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_mode_is_plain_decoding(tmp_path: Path, family: FamilyName, rows: int) -> None:
    device = this_device().torch_device
    folder = make_model(tmp_path / "hf", family)
    target = LeanModel(folder, torch.bfloat16, device)
    # In another arithmetic the same weights agree often, and not always: both branches are taken.
    draft = LeanModel(folder, torch.float32, device)
    plain, _ = logits_of(target, None, 0, rows)
    for length in (1, 4, 7):
        found, drafted = logits_of(target, draft, length, rows)
        assert drafted > 0
        assert all(map(torch.equal, found, plain)), f"draft length {length}"


def logits_of(
    target: LeanModel, draft: LeanModel | None, length: int, rows: int
) -> tuple[list[Tensor], int]:
    """Logits [new tokens, vocabulary] of each prompt, and how many tokens were the draft's."""
    prompts = [one.tolist() for one in documents(5, LENGTHS)]
    parts: list[list[Tensor]] = [[] for _ in prompts]
    accepted = 0

    def watch(step: Step) -> None:
        nonlocal accepted
        parts[step.sequence].append(step.logits)
        accepted += step.accepted

    decoder = SpeculativeDecoder(target, draft, Speculation(length, exact=True, window=WINDOW))
    decoder.generate(prompts, Sampling(NEW_TOKENS), rows, watch)
    return [torch.cat(part) for part in parts], accepted
