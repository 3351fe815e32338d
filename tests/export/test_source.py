"""HF directories and Megatron checkpoints, read alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.errors import UserError
from megatron_soaes.export import source as sources
from megatron_soaes.export.source import Source, open_source
from tests.checkpoint.tiny import Case, edit_weights, make_model, tensors_of
from tests.export.conftest import ModelOf

CASE = Case("qwen2", layers=2)


@pytest.fixture
def checkpoint(tmp_path: Path, model_of: ModelOf) -> Path:
    import_hf(model_of(CASE), tmp_path / "checkpoint", verify=False)
    return tmp_path / "checkpoint"


def content(source: Source) -> dict[str, torch.Tensor]:
    """All tensors, those outside the layers put together from their blocks."""
    outside = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    found = {n: torch.cat([block for _, block in source.blocks(n)]) for n in outside}
    for index in range(source.shape.layers):
        found |= source.layer(index)
    return found


def test_both_give_the_tensors_of_the_model(checkpoint: Path, model_of: ModelOf) -> None:
    expected = tensors_of(model_of(CASE))
    for path in (model_of(CASE), checkpoint, checkpoint / "iter_0000000"):
        found = content(open_source(path))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_vocabulary_matrix_comes_in_blocks(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 10_000)
    source = open_source(model_of(CASE))
    blocks = list(source.blocks("lm_head.weight"))
    assert [first for first, _ in blocks] == [0, 78, 156, 234]
    assert sum(len(block) for _, block in blocks) == 250


def test_what_cannot_be_a_model_is_refused(tmp_path: Path, model_of: ModelOf) -> None:
    with pytest.raises(UserError, match="no such directory"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such checkpoint"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="an HF directory and iteration 3"):
        open_source(model_of(CASE), iteration=3)


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    hf_dir = make_model(tmp_path / "hf", CASE)
    edit_weights(hf_dir, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(UserError, match=r"no tensor model\.norm\.weight"):
        open_source(hf_dir)
