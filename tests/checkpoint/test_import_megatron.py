"""Checkpoints of Megatron-LM: what an import takes, proves and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_soaes.checkpoint import import_torch_dist as module
from megatron_soaes.checkpoint.directory import HF_FILES, iteration_directory, latest_iteration
from megatron_soaes.checkpoint.export_hf import export_hf
from megatron_soaes.checkpoint.import_megatron import import_megatron, import_model
from megatron_soaes.checkpoint.torch_dist import TorchDistReader, TorchDistWriter
from megatron_soaes.errors import UserError
from megatron_soaes.models.weights import checkpoint_key
from megatron_soaes.recipe.shapes import read_shape
from tests.checkpoint.megatron_lm import (
    RUNS,
    VOCABULARY,
    edit_arguments,
    make_runs,
    tokens,
)
from tests.checkpoint.tiny import make_model, reference_logits
from tests.data_prep.conftest import save_tokenizer, train_tokenizer

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all runs and their tokenizer."""
    return make_runs(tmp_path_factory.mktemp("megatron-lm"), *RUNS)


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A run that a test may damage."""
    return Path(shutil.copytree(runs / "llama/run", tmp_path / "run"))


def whole(name: str, shards: list[Tensor]) -> Tensor:
    """A weight as Megatron-LM's tensor-parallel ranks share it, put together."""
    if len(shards) == 1 or name.endswith(("norm.weight", "layernorm.weight")):
        return shards[0]
    if name.endswith("linear_fc1.weight"):
        gates, ups = zip(*(shard.chunk(2) for shard in shards), strict=True)
        return torch.cat([*gates, *ups])
    return torch.cat(shards, dim=1 if name.endswith(("proj.weight", "fc2.weight")) else 0)


@pytest.mark.parametrize("name", RUNS)
def test_every_weight_is_the_runs_bit_for_bit(runs: Path, tmp_path: Path, name: str) -> None:
    report = import_megatron(runs / name / "run", runs / "tokenizer", tmp_path / "out")
    assert latest_iteration(tmp_path / "out") == 0
    imported = TorchDistReader(iteration_directory(tmp_path / "out", 0))
    ranks = [torch.load(file) for file in sorted((runs / name).glob("rank*.pt"))]
    seen = set()
    for parameter in {parameter for rank in ranks for parameter in rank}:
        shards = [rank[parameter] for rank in ranks if parameter in rank]
        tied_copies = RUNS[name].pipeline_parallel > 1 and parameter.startswith("embedding")
        expected = shards[0] if tied_copies else whole(parameter, shards)
        if parameter.startswith(("embedding", "output_layer")):
            expected = expected[:VOCABULARY]
        key, layer = checkpoint_key(parameter)
        sizes = list(expected.shape)
        if layer is None:
            found = imported.read_slice(key, [0] * len(sizes), sizes)
        else:
            found = imported.read_slice(key, [layer, *[0] * len(sizes)], [1, *sizes])[0]
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), parameter
        seen.add(key)
    assert seen == imported.shapes.keys()
    assert report.tensors == len(seen)


@pytest.mark.parametrize("name", RUNS)
def test_the_parity_gate_looks_at_the_whole_model(runs: Path, tmp_path: Path, name: str) -> None:
    parity = import_megatron(runs / name / "run", runs / "tokenizer", tmp_path / "out").parity
    assert parity is not None
    assert parity.complete
    assert parity.max_difference <= 1e-4


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_transformers_computes_what_the_run_computed(runs: Path, tmp_path: Path, name: str) -> None:
    """The run's logits are of Megatron-Core's own layers, sharded, built without our code."""
    import_megatron(runs / name / "run", runs / "tokenizer", tmp_path / "out", verify=False)
    export_hf(tmp_path / "out", tmp_path / "hf", verify=False)
    expected = torch.load(runs / name / "logits0.pt")
    found = reference_logits(tmp_path / "hf", tokens())
    assert (found - expected).abs().max() <= 1e-4


def test_what_stays_behind_is_said(runs: Path, tmp_path: Path) -> None:
    def left(name: str) -> list[str]:
        out = tmp_path / name
        return import_megatron(runs / name / "run", runs / "tokenizer", out, verify=False).skipped

    assert left("qwen2") == ["123 rows of vocabulary padding", "optimizer state"]
    assert left("qwen3") == ["251 rows of vocabulary padding"]


def test_the_hf_files_describe_the_model(runs: Path, tmp_path: Path) -> None:
    import_megatron(runs / "llama/run", runs / "tokenizer", tmp_path / "out", verify=False)
    hf = tmp_path / "out" / HF_FILES
    assert {f.name for f in hf.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    shape = read_shape(hf / "config.json")
    assert (shape.family, shape.layers, shape.vocab_size) == ("llama", 4, VOCABULARY)
    assert shape.rope_scaling is not None
    assert json.loads((hf / "config.json").read_text())["eos_token_id"] == 0


def test_one_iteration_may_be_given(runs: Path, tmp_path: Path) -> None:
    folder = runs / "llama/run/iter_0000040"
    import_megatron(folder, runs / "tokenizer", tmp_path / "out", verify=False)


def test_another_dtype_on_request(runs: Path, tmp_path: Path) -> None:
    report = import_megatron(
        runs / "llama/run", runs / "tokenizer", tmp_path / "out", dtype=torch.bfloat16
    )
    assert report.dtypes == ["bfloat16"]
    assert report.parity is not None


def test_a_config_json_of_the_same_model_is_taken_as_it_is(runs: Path, tmp_path: Path) -> None:
    import_megatron(runs / "llama/run", runs / "tokenizer", tmp_path / "out", verify=False)
    made = json.loads((tmp_path / "out" / HF_FILES / "config.json").read_text())
    base = Path(shutil.copytree(runs / "tokenizer", tmp_path / "base"))
    given = made | {"max_position_embeddings": 32768, "vocab_size": 300, "bos_token_id": 2}
    (base / "config.json").write_text(json.dumps(given))
    import_megatron(runs / "llama/run", base, tmp_path / "again")
    assert json.loads((tmp_path / "again" / HF_FILES / "config.json").read_text()) == given
    reader = TorchDistReader(iteration_directory(tmp_path / "again", 0))
    assert reader.shapes["output_layer.weight"] == (300, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": 1e-5}, r"config.json: norm_eps: found 1e-05; expected 1e-06, as the arg"),
        ({"tie_word_embeddings": True}, "tied_embeddings: found True; expected False"),
        ({"vocab_size": 250}, r"tokenizer.json: found token id 260; expected ids below vocab_size"),
    ],
)
def test_a_config_json_of_another_model_is_refused(
    runs: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    import_megatron(runs / "llama/run", runs / "tokenizer", tmp_path / "out", verify=False)
    made = json.loads((tmp_path / "out" / HF_FILES / "config.json").read_text())
    config = tmp_path / "config.json"
    config.write_text(json.dumps(made | change))
    with pytest.raises(UserError, match=message):
        import_megatron(runs / "llama/run", runs / "tokenizer", tmp_path / "again", config=config)
    assert not (tmp_path / "again").exists()


def test_a_tokenizer_of_another_model_is_refused(runs: Path, tmp_path: Path) -> None:
    large = train_tokenizer(261)
    large.add_tokens([f"<{number}>" for number in range(300)])
    save_tokenizer(tmp_path / "large", large)
    with pytest.raises(UserError, match="args: padded_vocab_size: found 512; expected at least"):
        import_megatron(runs / "llama/run", tmp_path / "large", tmp_path / "out")


def test_a_wrong_conversion_is_caught_and_leaves_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = module.read_weight
    monkeypatch.setattr(module, "read_weight", lambda *a: right(*a) * 1.01)
    with pytest.raises(UserError, match="logits"):
        import_megatron(runs / "llama/run", runs / "tokenizer", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 8}, r"common.pt: args: num_experts: found 8; expected None or 0"),
        ({"hidden_size": None}, r"args: hidden_size: found nothing"),
        ({"num_layers": 2}, r"found shape \[4,"),
        ({"untie_embeddings_and_output_weights": False}, "output_layer.weight: found a weight"),
        ({"add_qkv_bias": True}, r"linear_qkv.bias: found nothing"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    run: Path, runs: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    edit_arguments(run, **change)
    with pytest.raises(UserError, match=message):
        import_megatron(run, runs / "tokenizer", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def legacy(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "mp_rank_00").mkdir(parents=True)
    (folder / "mp_rank_00/model_optim_rng.pt").touch()


def zarr(folder: Path) -> None:
    (folder / "metadata.json").write_text('{"sharded_backend": "zarr"}')


def without_args(folder: Path) -> None:
    torch.save({"checkpoint_version": 3.0}, folder / "common.pt")


def old_version(folder: Path) -> None:
    common = torch.load(folder / "common.pt", weights_only=False)
    torch.save(common | {"checkpoint_version": 1.0}, folder / "common.pt")


def foreign_type(folder: Path) -> None:
    torch.save({"args": test_one_iteration_may_be_given}, folder / "common.pt")


def one_tensor_a_layer(folder: Path) -> None:
    common = torch.load(folder / "common.pt", weights_only=False)
    for file in folder.iterdir():
        file.unlink()
    with TorchDistWriter(folder, common) as writer:
        writer.write("decoder.layers.0.mlp.linear_fc2.weight", [2], [0], torch.ones(2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (legacy, r"the format 'torch'.*--ckpt-convert-format torch_dist --ckpt-convert-save"),
        (zarr, "sharded_backend: found 'zarr'; expected 'torch_dist'"),
        (lambda f: (f / "metadata.json").unlink(), r"no metadata.json beside .metadata"),
        (lambda f: (f / "common.pt").unlink(), r"found no common.pt"),
        (lambda f: (f / "metadata.json").write_text("{"), "damaged content"),
        (without_args, r"common.pt: found no args"),
        (old_version, r"checkpoint_version: found 1.0; expected 3.0"),
        (foreign_type, "found the global tests.checkpoint.test_import_megatron"),
        (one_tensor_a_layer, "decoder.layers.0.mlp.linear_fc2.weight: found one tensor a layer"),
        (shutil.rmtree, r"latest_checkpointed_iteration.txt: found '40'"),
    ],
)
def test_other_formats_are_refused_with_the_way_out(
    run: Path, runs: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(run / "iter_0000040")
    with pytest.raises(UserError, match=message):
        import_model(run, tmp_path / "out", tokenizer=runs / "tokenizer")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_must_be_given(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the run used HuggingFaceTokenizer /lustre/models/base"):
        import_model(runs / "llama/run", tmp_path / "out")


def test_an_hf_directory_brings_its_own_tokenizer(runs: Path, tmp_path: Path) -> None:
    hf = make_model(tmp_path / "hf")
    assert import_model(hf, tmp_path / "out").parity is not None
    with pytest.raises(UserError, match="no Megatron-LM checkpoint"):
        import_model(hf, tmp_path / "again", tokenizer=runs / "tokenizer")


def test_nothing_is_written_over(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="something already there"):
        import_megatron(runs / "llama/run", runs / "tokenizer", tmp_path)
