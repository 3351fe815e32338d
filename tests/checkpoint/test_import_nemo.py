"""Checkpoints of NeMo 2: what an import takes, and what it refuses.

nemo_qwen2/context holds the io.json and the model.yaml that NeMo 2.7.3 wrote when its own importer
converted the model of the fixture `hf`; the weights are written here in the format that NeMo's
are in. That NeMo's own checkpoints come in bit for bit is shown by environments/nemo.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_soaes.checkpoint.directory import HF_FILES, iteration_directory
from megatron_soaes.checkpoint.export_hf import export_hf
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.checkpoint.import_megatron import import_model
from megatron_soaes.checkpoint.torch_dist import TorchDistWriter
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.shapes import read_shape
from tests.checkpoint.tensors import tensors_in
from tests.checkpoint.tiny import Case, assert_same_tensors, make_model
from tests.data_prep.conftest import save_tokenizer, train_tokenizer

RECORDED = Path(__file__).parent / "nemo_qwen2"
VOCABULARY = 261
pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that NeMo was given."""
    folder = make_model(
        tmp_path_factory.mktemp("nemo") / "hf",
        Case("qwen2", vocab_size=320, layers=2),
        dtype=torch.bfloat16,
    )
    return save_tokenizer(folder, train_tokenizer(VOCABULARY))


def write_nemo_weights(folder: Path, hf: Path, **more: torch.Tensor) -> None:
    """The weights of `hf` by NeMo's keys."""
    import_hf(hf, folder.parent / "ours", verify=False)
    tensors = tensors_in(iteration_directory(folder.parent / "ours", 0))
    folder.mkdir()
    with TorchDistWriter(folder, {"state_dict": {}}) as writer:
        named = {f"module.{key}": tensor for key, tensor in tensors.items()} | more
        for key, tensor in named.items():
            writer.write(key, tensor.shape, [0] * tensor.dim(), tensor)


@pytest.fixture
def nemo(tmp_path: Path, hf: Path) -> Path:
    """A checkpoint that a test may damage."""
    folder = Path(shutil.copytree(RECORDED, tmp_path / "nemo"))
    write_nemo_weights(folder / "weights", hf)
    shutil.rmtree(folder / "ours")
    save_tokenizer(folder / "context/nemo_tokenizer", train_tokenizer(VOCABULARY))
    (folder / "context/artifacts").mkdir()
    shutil.copy(hf / "generation_config.json", folder / "context/artifacts")
    return folder


def test_every_weight_and_the_shape_come_along(nemo: Path, hf: Path, tmp_path: Path) -> None:
    report = import_model(nemo, tmp_path / "out")
    assert report.parity is not None
    assert report.parity.complete
    assert (report.dtypes, report.skipped) == (["bfloat16"], [])
    export_hf(tmp_path / "out", tmp_path / "hf", verify=False)
    assert_same_tensors(tmp_path / "hf", hf)
    assert read_shape(tmp_path / "hf/config.json") == read_shape(hf / "config.json")
    assert (tmp_path / "hf/generation_config.json").is_file()


def test_what_stays_behind_is_said(nemo: Path, hf: Path, tmp_path: Path) -> None:
    edit_io(nemo, "vocab_size", 300)
    shutil.rmtree(nemo / "weights")
    moments = {"optimizer.state.exp_avg.module.decoder.final_layernorm.weight": torch.zeros(64)}
    write_nemo_weights(nemo / "weights", hf, **moments)
    report = import_model(nemo, tmp_path / "out")
    assert report.skipped == ["20 rows of vocabulary padding", "optimizer state"]


def test_another_tokenizer_and_dtype_on_request(nemo: Path, hf: Path, tmp_path: Path) -> None:
    report = import_model(nemo, tmp_path / "out", tokenizer=hf, dtype=torch.float32)
    assert report.dtypes == ["float32"]
    # The config.json beside the tokenizer describes the same model, and is taken as it is.
    config = (tmp_path / "out" / HF_FILES / "config.json").read_text(encoding="utf-8")
    assert json.loads(config) == json.loads((hf / "config.json").read_text(encoding="utf-8"))


def edit_io(nemo: Path, name: str, value: Any) -> None:
    """Change one value of a configuration in io.json."""
    file = nemo / "context/io.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for config in content["objects"].values():
        for key, found in config["items"]:
            if key == f"Attr(name='{name}')" and isinstance(found, dict) and "value" in found:
                found["value"] = value
    file.write_text(json.dumps(content), encoding="utf-8")


def name_another_class(nemo: Path) -> None:
    """What io.json names is compared, never looked up."""
    file = nemo / "context/io.json"
    text = file.read_text(encoding="utf-8")
    text = text.replace('"nemo.collections.llm.gpt.model.qwen2"', '"os"')
    file.write_text(text.replace('"Qwen2Config"', '"system"'), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f / "weights"), "found no folder weights"),
        (lambda f: (f / "weights/.metadata").unlink(), "found no .metadata"),
        (lambda f: (f / "context/io.json").write_text("{"), "no readable <root>.model.config"),
        (lambda f: (f / "context/io.json").write_text('{"objects": {}}'), "no readable <root>"),
        (lambda f: (f / "context/model.yaml").write_text("- ["), "model.yaml: found unreadable"),
        (lambda f: (f / "context/model.yaml").unlink(), "kv_channels: found nothing"),
        (lambda f: shutil.rmtree(f / "context/nemo_tokenizer"), "no tokenizer in the checkpoint"),
        (lambda f: edit_io(f, "pretrained_model_name", "/"), "Give its folder with --tokenizer"),
        (lambda f: edit_io(f, "num_layers", 3), r"found shape \[2, 64\]; expected shape \[3, 64\]"),
        (lambda f: edit_io(f, "vocab_size", 200), "found token id 260; expected ids below"),
        (name_another_class, "found the class os.system"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    nemo: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(nemo)
    with pytest.raises(UserError, match=message):
        import_model(nemo, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(nemo: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="something already there"):
        import_model(nemo, tmp_path)
