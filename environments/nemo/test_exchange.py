"""NeMo 2.7.3 and Megatron-Bridge 0.3.1 read what we write; we read what NeMo writes.

Outside of the default tests, because both programs need the environment of requirements.txt:

    NEMO_PYTHON=~/envs/nemo/bin/python python -m pytest environments/nemo
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_soaes.checkpoint.directory import iteration_directory
from megatron_soaes.checkpoint.export_hf import export_hf
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.checkpoint.import_megatron import import_model
from megatron_soaes.export.nemo import export_nemo
from megatron_soaes.recipe.shapes import read_shape
from tests.checkpoint.tiny import Case, make_model, reference_logits, tensors_of
from tests.data_prep.conftest import save_tokenizer, train_tokenizer

HERE = Path(__file__).parent
VOCABULARY = 261
"""Ids of the tokenizer; NeMo's Llama exporter cuts the embedding to them."""
LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""NeMo's importer takes the base and the factor from config.json, and the rest for granted."""
CASES = {
    "qwen2": (Case("qwen2", vocab_size=320), torch.bfloat16),
    "qwen2-tied": (Case("qwen2", tied=True, vocab_size=320), torch.bfloat16),
    # NeMo's importer takes 128 columns a head for granted.
    "qwen3": (Case("qwen3", vocab_size=320, head_dim=128), torch.bfloat16),
    "qwen3-tied": (Case("qwen3", tied=True, vocab_size=320, head_dim=128), torch.float32),
    "llama": (Case("llama", vocab_size=VOCABULARY, head_dim=16), torch.float32),
    "llama-scaled": (
        Case("llama", tied=True, vocab_size=VOCABULARY, rope=LLAMA31_ROPE), torch.bfloat16,
    ),
}  # fmt: skip


def run(program: str, *arguments: str | Path) -> None:
    command = [os.environ["NEMO_PYTHON"], str(HERE / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each case: our HF export, our checkpoint, our NeMo export."""
    folder = tmp_path_factory.mktemp("models")
    for name, (case, dtype) in CASES.items():
        base = make_model(folder / name / "base", case, dtype=dtype)
        save_tokenizer(base, train_tokenizer(VOCABULARY))
        import_hf(base, folder / name / "ours", verify=False)
        export_hf(folder / name / "ours", folder / name / "hf", verify=False)
        export_nemo(folder / name / "ours", folder / name / "nemo")
    return folder


@pytest.fixture(scope="module")
def by_nemo(models: Path) -> Path:
    """The same folders, with what NeMo makes of `hf` and of `nemo`."""
    run("nemo_side.py", models)
    return models


def assert_weights_of(found: Path, model: Path) -> None:
    """Bit for bit; a model that NeMo unties has an output layer beside its tensors.

    Of a tied Qwen3, NeMo's exporter leaves uninitialised memory in lm_head.weight, which readers
    ignore because config.json says that it is tied.
    """
    tensors, expected = tensors_of(found), tensors_of(model)
    was_tied = read_shape(model / "config.json").tied_embeddings
    if read_shape(found / "config.json").tied_embeddings:
        tensors.pop("lm_head.weight", None)
    elif was_tied:
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize("name", CASES)
def test_nemo_exports_what_we_wrote(by_nemo: Path, name: str) -> None:
    found, model = by_nemo / name / "hf-by-nemo", by_nemo / name / "hf"
    assert_weights_of(found, model)
    expected = read_shape(model / "config.json")
    if name == "qwen2-tied":
        expected = replace(expected, tied_embeddings=False)
    assert read_shape(found / "config.json") == expected


@pytest.mark.parametrize("name", CASES)
def test_we_import_what_nemo_wrote(by_nemo: Path, tmp_path: Path, name: str) -> None:
    report = import_model(by_nemo / name / "nemo-by-nemo", tmp_path / "checkpoint")
    assert report.parity is not None
    assert report.skipped == []
    export_hf(tmp_path / "checkpoint", tmp_path / "hf", verify=False)
    assert_weights_of(tmp_path / "hf", by_nemo / name / "hf")
    found = read_shape(tmp_path / "hf/config.json")
    expected = read_shape(by_nemo / name / "hf/config.json")
    if name == "qwen2-tied":
        expected = replace(expected, tied_embeddings=False)
    # NeMo's Qwen3 importer has its own number of positions.
    assert found == replace(expected, max_position=found.max_position)


def test_megatron_bridge_builds_the_model_from_args(models: Path, tmp_path: Path) -> None:
    # Its builder knows one factor of rope scaling, 8.
    names = [name for name in CASES if name != "llama-scaled"]
    checkpoints = {name: str(iteration_directory(models / name / "ours", 0)) for name in names}
    run("bridge_side.py", *checkpoints.values(), tmp_path / "logits.pt")
    logits = torch.load(tmp_path / "logits.pt")
    for name in names:
        expected = reference_logits(models / name / "hf", torch.arange(64).unsqueeze(0))
        assert (logits[checkpoints[name]] - expected).abs().max() <= 1e-4, name
