"""The same logits from transformers and from Megatron-Core, and a gate that notices when not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_soaes.accelerator.launch import launch
from megatron_soaes.checkpoint.directory import iteration_directory
from megatron_soaes.checkpoint.export_hf import export_hf
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.checkpoint.parity import check_parity, compare, sample_layers
from megatron_soaes.errors import UserError
from megatron_soaes.models import build, families, llama
from megatron_soaes.models.rope import rope_inverse_frequencies
from megatron_soaes.models.weights import GATED, Transform
from megatron_soaes.recipe.shapes import ModelShape
from tests.checkpoint import parity_worker
from tests.checkpoint.tiny import (
    FAMILY_CASES,
    ROPE_CASE,
    Case,
    assert_same_tensors,
    edit_weights,
    make_model,
    reference_logits,
)
from tests.models.shapes import SHAPE

CASES = [*FAMILY_CASES, ROPE_CASE]
pytestmark = pytest.mark.usefixtures("one_process")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_import_computes_what_transformers_computes(tmp_path: Path, case: Case) -> None:
    hf_dir = make_model(tmp_path / "hf", case)
    report = import_hf(hf_dir, tmp_path / "checkpoint").parity
    assert report is not None
    assert report.complete
    assert report.layers == [0, 1, 2, 3]
    assert report.max_difference <= 1e-4
    assert report.argmax_agreement == 1.0


def test_sharded_models_compute_the_same_and_export_to_the_same(tmp_path: Path) -> None:
    """On two processes: tensor parallel, and saved again there and as a pipeline."""
    for case in CASES:
        folder = tmp_path / case.name
        hf_dir = make_model(folder / "hf", case)
        import_hf(hf_dir, folder / "imported", verify=False)
        tokens = parity_worker.tokens(case.vocab_size)
        torch.save(reference_logits(hf_dir, tokens), folder / "reference.pt")
    code = launch("tests.checkpoint.parity_worker", [str(tmp_path)], 2, tmp_path / "logs")
    assert code == 0, (tmp_path / "logs" / "rank1.log").read_text(encoding="utf-8")
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(results) == {case.name for case in CASES}
    for name, result in results.items():
        assert result["max_difference"] <= 1e-4, name
        assert result["padding"] == 0.0, name
    for name in parity_worker.SAVED_AGAIN:
        for layout in ("tensor", "pipeline"):
            export_hf(tmp_path / name / layout, tmp_path / name / "exported" / layout)
            assert_same_tensors(tmp_path / name / "exported" / layout, tmp_path / name / "hf")


def swap(tensors: dict[str, Tensor], first: str, second: str) -> None:
    tensors[first], tensors[second] = tensors[second], tensors[first]


LAYER = "model.layers.1."
CORRUPTIONS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "queries and keys swapped": lambda t: swap(
        t, LAYER + "self_attn.q_proj.weight", LAYER + "self_attn.k_proj.weight"
    ),
    "gate and up swapped": lambda t: swap(
        t, LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"
    ),
    "one norm off by 1e-3": lambda t: t[LAYER + "input_layernorm.weight"].add_(1e-3),
    "layers swapped": lambda t: swap(
        t, "model.layers.0.self_attn.o_proj.weight", "model.layers.2.self_attn.o_proj.weight"
    ),
    "final norm forgotten": lambda t: t["model.norm.weight"].fill_(1.0),
    "output off in one row": lambda t: t["lm_head.weight"][17].mul_(1.01),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_gate_notices(tmp_path: Path, corruption: str) -> None:
    hf_dir = make_model(tmp_path / "hf", Case(kv_heads=8))
    import_hf(hf_dir, tmp_path / "checkpoint", verify=False)
    edit_weights(hf_dir, CORRUPTIONS[corruption])
    with pytest.raises(UserError, match="parity failure: logits differ by"):
        check_parity(hf_dir, iteration_directory(tmp_path / "checkpoint", 0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": 8.0},
        {"low_freq_factor": 1.0},
        {"high_freq_factor": 4.0},
        {"original_max_position": 8192},
    ],
    ids=str,
)
def test_the_gate_notices_each_parameter_of_rope_scaling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    hf_dir = make_model(tmp_path / "hf", ROPE_CASE)

    def wrong_frequencies(shape: ModelShape) -> Tensor:
        assert shape.rope_scaling is not None
        return rope_inverse_frequencies(
            replace(shape, rope_scaling=replace(shape.rope_scaling, **wrong))
        )

    monkeypatch.setattr(build, "rope_inverse_frequencies", wrong_frequencies)
    with pytest.raises(UserError, match="parity failure"):
        import_hf(hf_dir, tmp_path / "checkpoint")


def test_a_wrong_conversion_publishes_nothing(
    tmp_path: Path, hf_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up_first = Transform(lambda s, t: GATED.join(s, [t[1], t[0]]), GATED.split)
    wrong = tuple(
        replace(w, transform=up_first) if w.transform is GATED else w for w in llama.WEIGHTS
    )
    monkeypatch.setitem(families.WEIGHTS, "llama", wrong)
    with pytest.raises(UserError, match="parity failure"):
        import_hf(hf_dir, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_wrong_export_publishes_nothing(
    tmp_path: Path, checkpoint_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up_first = Transform(GATED.join, lambda s, t: GATED.split(s, t)[::-1])
    wrong = tuple(
        replace(w, transform=up_first) if w.transform is GATED else w for w in llama.WEIGHTS
    )
    monkeypatch.setitem(families.WEIGHTS, "llama", wrong)
    with pytest.raises(UserError, match="parity failure"):
        export_hf(checkpoint_root, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "hf"]


def test_a_big_model_is_compared_on_some_of_its_layers(tmp_path: Path) -> None:
    hf_dir = make_model(tmp_path / "hf", Case(layers=7))
    import_hf(hf_dir, tmp_path / "checkpoint", verify=False)
    checkpoint = iteration_directory(tmp_path / "checkpoint", 0)
    report = check_parity(hf_dir, checkpoint, model_bytes=0)
    assert report.layers == [0, 3, 6]
    assert not report.complete
    assert str(report).startswith("parity: 0, 3, 6 of 7 layers, 512 tokens: logits differ by at")
    edit_weights(hf_dir, lambda t: t["model.layers.3.mlp.down_proj.weight"].mul_(1.01))
    with pytest.raises(UserError, match=r"parity failure.*layers \[0, 3, 6\]"):
        check_parity(hf_dir, checkpoint, model_bytes=0)


@given(layers=st.integers(1, 90), model_bytes=st.integers(0, 2**24))
def test_sampled_layers_are_spread_from_the_first_to_the_last(
    layers: int, model_bytes: int
) -> None:
    shape = replace(SHAPE, layers=layers)
    sample = sample_layers(shape, model_bytes)
    assert sample == sorted(set(sample))
    assert (sample[0], sample[-1]) == (0, layers - 1)
    assert len(sample) >= min(layers, 3)
    if len(sample) > 3:
        assert 4 * replace(shape, layers=len(sample)).parameters <= model_bytes


def test_the_tolerance_follows_depth_and_logits() -> None:
    small = torch.full((1, 2, 3), 0.5)
    assert compare(small, small, range(10), 10).tolerance == pytest.approx(1e-4, rel=0.1)
    assert compare(small * 40, small, range(10), 10).tolerance == pytest.approx(2e-3, rel=0.1)
    assert compare(small, small, range(40), 40).tolerance == pytest.approx(2e-4, rel=0.1)


def test_logits_that_are_not_numbers_never_pass(tmp_path: Path, hf_dir: Path) -> None:
    edit_weights(hf_dir, lambda t: t["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(UserError, match="parity failure"):
        import_hf(hf_dir, tmp_path / "out")
