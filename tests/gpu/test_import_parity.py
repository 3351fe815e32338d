"""An imported model computes on the GPU, through Transformer Engine, what `transformers` does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.checkpoint.parity import compare
from megatron_soaes.recipe.schema import FamilyName
from tests.gpu.material import FAMILIES, make_model, packed_logits, rms, separate_logits

pytestmark = pytest.mark.usefixtures("transformer_engine")

BF16_ERROR = 1.5
"""Both models round to bf16 at about as many places, so both are about as far from fp32: the ratio
of their errors is 0.94 to 1.05 between the local layers and `transformers` on a CPU. A wrong
weight or mask makes it 100."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_import_gate_passes_in_fp32(tmp_path: Path, family: FamilyName) -> None:
    hf_dir = make_model(tmp_path / "hf", family)
    report = import_hf(hf_dir, tmp_path / "checkpoint").parity
    assert report is not None
    assert report.complete
    assert report.argmax_agreement == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_equal_separate_ones_in_fp32(tmp_path: Path, family: FamilyName) -> None:
    hf_dir = make_model(tmp_path / "hf", family)
    import_hf(hf_dir, tmp_path / "checkpoint", verify=False)
    reference = separate_logits(hf_dir, torch.float32)
    packed = packed_logits(tmp_path / "checkpoint", hf_dir, torch.float32)
    report = compare(reference[None], packed[None], range(4), 4)
    assert report.max_difference <= report.tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_in_bf16_are_as_exact_as_transformers(
    tmp_path: Path, family: FamilyName
) -> None:
    hf_dir = make_model(tmp_path / "hf", family)
    import_hf(hf_dir, tmp_path / "checkpoint", verify=False)
    exact = separate_logits(hf_dir, torch.float32)
    theirs = rms(separate_logits(hf_dir, torch.bfloat16) - exact)
    ours = rms(packed_logits(tmp_path / "checkpoint", hf_dir, torch.bfloat16) - exact)
    assert theirs > 0
    assert ours <= BF16_ERROR * theirs
