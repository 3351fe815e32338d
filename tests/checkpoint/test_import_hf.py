"""Imports: what they keep, what they refuse, and how little memory they need."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_soaes.checkpoint import import_hf as module
from megatron_soaes.checkpoint.directory import HF_FILES, iteration_directory, latest_iteration
from megatron_soaes.checkpoint.hf_files import HFWeights
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.checkpoint.torch_dist import TorchDistReader, TorchDistWriter
from megatron_soaes.errors import UserError
from tests.checkpoint.tiny import Case, edit_config, edit_weights, make_model, tensors_of

pytestmark = pytest.mark.usefixtures("one_process")


def test_a_checkpoint_at_iteration_0_with_the_files_of_the_model(
    tmp_path: Path, hf_dir: Path
) -> None:
    seen: list[tuple[int, int]] = []
    report = import_hf(
        hf_dir, tmp_path / "out", progress=lambda done, total: seen.append((done, total))
    )
    assert latest_iteration(tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out" / HF_FILES).iterdir()) == [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
    ]
    parameters = sum(t.numel() for t in tensors_of(hf_dir).values())
    assert seen[-1] == (parameters, parameters)
    assert report.bytes == 4 * parameters
    assert (report.dtypes, report.skipped) == (["float32"], [])
    assert report.tensors == len(tensors_of(hf_dir))


@pytest.mark.parametrize("shard_size", ["1GB", "30KB"])
def test_layers_are_stacked_and_the_vocabulary_is_not_padded(
    tmp_path: Path, shard_size: str
) -> None:
    hf_dir = make_model(tmp_path / "hf", dtype=torch.bfloat16, shard_size=shard_size)
    import_hf(hf_dir, tmp_path / "out", verify=False)
    checkpoint = TorchDistReader(iteration_directory(tmp_path / "out", 0))
    assert checkpoint.shapes["decoder.layers.mlp.linear_fc1.weight"] == (4, 2 * 96, 64)
    assert checkpoint.shapes["output_layer.weight"] == (250, 64)
    assert checkpoint.dtype("output_layer.weight") == torch.bfloat16
    down = checkpoint.read_slice("decoder.layers.mlp.linear_fc2.weight", [2, 0, 0], [1, 64, 96])
    assert torch.equal(down[0], tensors_of(hf_dir)["model.layers.2.mlp.down_proj.weight"])


def test_another_dtype_on_request(tmp_path: Path, hf_dir: Path) -> None:
    report = import_hf(hf_dir, tmp_path / "out", dtype=torch.bfloat16, verify=False)
    assert report.dtypes == ["bfloat16"]
    checkpoint = TorchDistReader(iteration_directory(tmp_path / "out", 0))
    norm = checkpoint.read_slice("decoder.final_layernorm.weight", [0], [64])
    assert torch.equal(norm, tensors_of(hf_dir)["model.norm.weight"].bfloat16())


def test_no_more_than_a_few_slices_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_dir = make_model(tmp_path / "hf", Case(layers=16))
    live, peak = 0, 0

    def track(tensor: Tensor) -> None:
        nonlocal live, peak
        live += tensor.nbytes
        peak = max(peak, live)

        def released(size: int = tensor.nbytes) -> None:
            nonlocal live
            live -= size

        weakref.finalize(tensor, released)

    read, store = HFWeights.read, TorchDistWriter.write

    def tracked_read(self: HFWeights, name: str) -> Tensor:
        tensor = read(self, name)
        track(tensor)
        return tensor

    def tracked_write(self: TorchDistWriter, *arguments: Any) -> None:
        track(arguments[-1])
        store(self, *arguments)

    monkeypatch.setattr(HFWeights, "read", tracked_read)
    monkeypatch.setattr(TorchDistWriter, "write", tracked_write)
    written = import_hf(hf_dir, tmp_path / "out", verify=False).bytes
    largest_slice = 250 * 64 * 4
    assert 0 < peak <= 3 * largest_slice
    assert written > 20 * largest_slice


LAYER = "model.layers.1."
DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing tensor": (
        lambda t: t.pop(LAYER + "mlp.up_proj.weight"),
        r"hf: found no tensor model.layers.1.mlp.up_proj.weight; expected it, with shape \[96",
    ),
    "missing layer norm": (
        lambda t: t.pop("model.norm.weight"),
        r"found no tensor model.norm.weight",
    ),
    "untied without an output layer": (
        lambda t: t.pop("lm_head.weight"),
        r"found no tensor lm_head.weight; expected it, with shape \[250, 64\]",
    ),
    "unexpected tensor": (
        lambda t: t.update({LAYER + "self_attn.q_proj.bias": torch.zeros(64)}),
        r"model.safetensors: model.layers.1.self_attn.q_proj.bias: found a tensor this family",
    ),
    "a layer more than config.json has": (
        lambda t: t.update({"model.layers.4.mlp.up_proj.weight": torch.zeros(96, 64)}),
        r"model.layers.4.mlp.up_proj.weight: found a tensor this family does not have",
    ),
    "wrong shape": (
        lambda t: t.update({LAYER + "mlp.up_proj.weight": torch.zeros(64, 96)}),
        r"model.layers.1.mlp.up_proj.weight: found shape \[64, 96\]; expected \[96, 64\]",
    ),
    "mixed dtypes": (
        lambda t: t.update({LAYER + "mlp.up_proj.weight": torch.zeros(96, 64).bfloat16()}),
        r"model.layers.1.mlp.up_proj.weight: found torch.bfloat16; expected torch.float32",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_malformed_model_is_refused_and_leaves_nothing(
    tmp_path: Path, hf_dir: Path, damage: str
) -> None:
    edit, message = DAMAGE[damage]
    edit_weights(hf_dir, edit)
    with pytest.raises(UserError, match=message):
        import_hf(hf_dir, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_a_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, hf_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "copy_other_files", full_disk)
    with pytest.raises(OSError, match="no space left"):
        import_hf(hf_dir, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_nothing_is_overwritten(tmp_path: Path, hf_dir: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="found something already there"):
        import_hf(hf_dir, tmp_path / "out")


def test_a_tied_model_may_carry_a_copy_of_its_embedding(tmp_path: Path) -> None:
    hf_dir = make_model(tmp_path / "hf", Case(tied=True))
    edit_weights(
        hf_dir, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    assert import_hf(hf_dir, tmp_path / "out").skipped == ["lm_head.weight"]


def test_a_tied_model_with_another_output_layer_is_refused(tmp_path: Path) -> None:
    hf_dir = make_model(tmp_path / "hf", Case(tied=True))
    edit_weights(hf_dir, lambda t: t.update({"lm_head.weight": torch.zeros(250, 64)}))
    with pytest.raises(UserError, match=r"lm_head.weight: found values that differ from"):
        import_hf(hf_dir, tmp_path / "out")


def test_frequency_tables_of_early_llama_files_are_skipped_by_name(
    tmp_path: Path, hf_dir: Path
) -> None:
    name = LAYER + "self_attn.rotary_emb.inv_freq"
    edit_weights(hf_dir, lambda t: t.update({name: torch.zeros(4)}))
    assert import_hf(hf_dir, tmp_path / "out").skipped == [name]


def test_another_architecture_is_refused(tmp_path: Path, hf_dir: Path) -> None:
    edit_config(hf_dir, architectures=["MixtralForCausalLM"])
    with pytest.raises(UserError, match="architectures: found 'MixtralForCausalLM'"):
        import_hf(hf_dir, tmp_path / "out")
