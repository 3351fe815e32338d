"""Exports for NeMo 2: what is written, that it comes back, and what is refused.

That NeMo itself accepts it is shown by environments/nemo, outside of the default tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_config import TransformerConfig
from typer.testing import CliRunner

from megatron_soaes.accelerator.groups import Rendezvous, model_parallel, process_group
from megatron_soaes.checkpoint.directory import HF_FILES, iteration_directory
from megatron_soaes.checkpoint.export_hf import export_hf
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.checkpoint.import_megatron import import_model
from megatron_soaes.checkpoint.torch_dist import TorchDistWriter
from megatron_soaes.cli_nemo import nemo
from megatron_soaes.errors import UserError
from megatron_soaes.export.nemo import export_nemo
from megatron_soaes.models.weights import checkpoint_key
from megatron_soaes.recipe.shapes import read_shape
from tests.checkpoint.tensors import newest_tensors, tensors_in
from tests.checkpoint.tiny import (
    LLAMA3_ROPE,
    Case,
    assert_same_tensors,
    edit_config,
    make_model,
    tensors_of,
)
from tests.data_prep.conftest import save_tokenizer, train_tokenizer

VOCABULARY = 261
CASES = [
    Case("qwen2", vocab_size=320),
    Case("qwen3", tied=True, vocab_size=320),
    Case("llama", vocab_size=320, kv_heads=8),
    Case("llama", tied=True, vocab_size=VOCABULARY, rope=LLAMA3_ROPE),
]


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """The groups of a model that is not sharded."""
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        yield


def checkpoint_of(folder: Path, case: Case, dtype: torch.dtype = torch.bfloat16) -> Path:
    """An imported model, with its HF directory `hf` beside it."""
    hf = make_model(folder / "hf", case, dtype=dtype)
    save_tokenizer(hf, train_tokenizer(VOCABULARY))
    import_hf(hf, folder / "ours", verify=False)
    return folder / "ours"


def built(io: dict[str, Any], value: Any) -> Any:
    """What fiddle makes of a value in io.json: calls as their names with their arguments."""
    if isinstance(value, str):
        return value
    if value["type"] == "leaf":
        return value["value"]
    if value["type"] == "pyref":
        return f"{value['module']}.{value['name']}"
    if value["type"] != "ref":
        kind = value["type"]["name"]
        parts = [built(io, part) for _, part in value["items"]]
        if kind == "Config":
            about = [
                built(io, part) for _, part in io["objects"][value["metadata"]["key"]]["items"]
            ]
            function, names, *_ = about
            assert [key for key, _ in value["items"]] == [f"Attr(name='{name}')" for name in names]
            return {"call": function, **dict(zip(names, parts, strict=True))}
        return parts
    return built(io, io["objects"][value["key"]])


def test_the_folder_is_laid_out_as_nemo_lays_it_out(tmp_path: Path) -> None:
    report = export_nemo(checkpoint_of(tmp_path, CASES[0]), tmp_path / "nemo")
    names = {str(f.relative_to(tmp_path / "nemo")) for f in (tmp_path / "nemo").rglob("*.*")}
    assert {
        "context/io.json",
        "context/nemo_tokenizer/tokenizer.json",
        "context/nemo_tokenizer/tokenizer_config.json",
        "context/artifacts/generation_config.json",
        "weights/.metadata",
        "weights/metadata.json",
        "weights/common.pt",
        "weights/__0_0.distcp",
    } == names
    assert json.loads((tmp_path / "nemo/weights/metadata.json").read_text()) == {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    assert all(key.startswith("module.") for key in tensors_in(tmp_path / "nemo/weights"))
    assert (report.iteration, report.dtype, report.notes) == (0, "bfloat16", [])


def test_io_json_says_which_objects_nemo_builds(tmp_path: Path) -> None:
    export_nemo(checkpoint_of(tmp_path, CASES[3]), tmp_path / "nemo")
    io = json.loads((tmp_path / "nemo/context/io.json").read_text(encoding="utf-8"))
    assert (io["version"], io["refcounts"]) == ("0.0.1", {})
    context = built(io, io["root"])
    assert context["call"] == "nemo.lightning.io.pl.TrainerContext"
    assert context["trainer"] is None
    model = context["model"]
    assert model["call"] == "nemo.collections.llm.gpt.model.llama.LlamaModel"
    assert model["tokenizer"]["pretrained_model_name"] == "nemo_tokenizer"
    generation = model["config"].pop("generation_config")
    assert generation["pretrained_model_name_or_path"] == "./artifacts"
    assert model["config"] == {
        "call": "nemo.collections.llm.gpt.model.llama.Llama31Config",
        "num_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_query_groups": 2,
        "kv_channels": 8,
        "ffn_hidden_size": 96,
        "layernorm_epsilon": 1e-6,
        "rotary_base": 100.0,
        "share_embeddings_and_output_weights": True,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "vocab_size": VOCABULARY,
        "seq_length": 256,
        "scale_factor": 4.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 8.0,
        "old_context_len": 64,
        "params_dtype": "torch.bfloat16",
        "bf16": True,
        "fp16": False,
    }


def test_every_value_knows_its_path(tmp_path: Path) -> None:
    """NeMo looks for `<root>.model.config` among the paths to load a part alone."""
    export_nemo(checkpoint_of(tmp_path, CASES[0]), tmp_path / "nemo")
    io = json.loads((tmp_path / "nemo/context/io.json").read_text(encoding="utf-8"))
    configs = [o for o in io["objects"].values() if o["type"]["name"] == "Config"]
    paths = {path for config in configs for path in config["paths"]}
    assert {"<root>", "<root>.model", "<root>.model.config", "<root>.model.tokenizer"} <= paths
    values = [value for config in configs for _, value in config["items"]]
    assert all("paths" in value for value in values if value["type"] != "ref")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_export_and_import_are_inverse(tmp_path: Path, case: Case) -> None:
    export_nemo(checkpoint_of(tmp_path, case), tmp_path / "nemo")
    report = import_model(tmp_path / "nemo", tmp_path / "again")
    assert report.parity is not None
    export_hf(tmp_path / "again", tmp_path / "out", verify=False)
    assert_same_tensors(tmp_path / "out", tmp_path / "hf")
    assert read_shape(tmp_path / "out/config.json") == read_shape(tmp_path / "hf/config.json")


def test_megatron_core_loads_the_weights_by_itself(tmp_path: Path) -> None:
    """NeMo's way: a model of Megatron-Core's layers, every key with the prefix, strictly."""
    root = checkpoint_of(tmp_path, CASES[0], torch.float32)
    export_nemo(root, tmp_path / "nemo")
    config = TransformerConfig(
        num_layers=4,
        hidden_size=64,
        num_attention_heads=8,
        num_query_groups=2,
        ffn_hidden_size=96,
        normalization="RMSNorm",
        add_bias_linear=False,
        add_qkv_bias=True,
        gated_linear_unit=True,
        perform_initialization=False,
    )
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    model = GPTModel(
        config, spec, 320, 256, position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )  # fmt: skip
    wanted = {"state_dict": model.sharded_state_dict(prefix="module.")}
    loaded = dist_checkpointing.load(wanted, str(tmp_path / "nemo/weights"))["state_dict"]
    model.load_state_dict({name.removeprefix("module."): t for name, t in loaded.items()})
    stored = newest_tensors(root)
    for name, parameter in model.named_parameters():
        key, layer = checkpoint_key(name)
        expected = stored[key] if layer is None else stored[key][layer]
        assert torch.equal(parameter, expected), name


def test_a_tied_qwen2_is_written_out_in_full(tmp_path: Path) -> None:
    root = checkpoint_of(tmp_path, Case("qwen2", tied=True, vocab_size=320))
    report = export_nemo(root, tmp_path / "nemo")
    assert report.notes == [
        "output layer (320 x 64) written out: NeMo 2.7 has no tied qwen2 models"
    ]
    import_model(tmp_path / "nemo", tmp_path / "again")
    export_hf(tmp_path / "again", tmp_path / "out", verify=False)
    found = tensors_of(tmp_path / "out")
    assert torch.equal(found.pop("lm_head.weight"), found["model.embed_tokens.weight"])
    expected = tensors_of(tmp_path / "hf")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_another_dtype_on_request(tmp_path: Path) -> None:
    root = checkpoint_of(tmp_path, CASES[0], torch.float32)
    assert export_nemo(root, tmp_path / "nemo", dtype=torch.bfloat16).dtype == "bfloat16"
    written = tensors_in(tmp_path / "nemo/weights")
    for key, tensor in newest_tensors(root).items():
        assert torch.equal(written[f"module.{key}"], tensor.bfloat16())


def test_the_tokenizer_is_one_that_transformers_4_reads(tmp_path: Path) -> None:
    root = checkpoint_of(tmp_path, CASES[0])
    config = root / HF_FILES / "tokenizer_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(content | {"tokenizer_class": "TokenizersBackend"}))
    export_nemo(root, tmp_path / "nemo")
    written = json.loads((tmp_path / "nemo/context/nemo_tokenizer" / config.name).read_text())
    assert written == content


def several_dtypes(root: Path) -> None:
    folder = iteration_directory(root, 0)
    tensors = tensors_in(folder)
    common = torch.load(folder / "common.pt", weights_only=False)
    for file in folder.iterdir():
        file.unlink()
    with TorchDistWriter(folder, common) as writer:
        for key, tensor in tensors.items():
            kept = tensor.float() if key.endswith("final_layernorm.weight") else tensor
            writer.write(key, kept.shape, [0] * kept.dim(), kept)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (several_dtypes, r"final_layernorm.weight: found torch.float32; expected torch.bfloat16"),
        (
            lambda root: edit_config(root / HF_FILES, rope_parameters=LLAMA3_ROPE),
            "none, because NeMo 2.7 has no such qwen2 model",
        ),
        (lambda root: edit_config(root / HF_FILES, num_hidden_layers=3), r"found shape \[4, 64\]"),
    ],
)
def test_what_nemo_cannot_hold_is_refused_with_the_reason(
    tmp_path: Path, damage: Any, message: str
) -> None:
    root = checkpoint_of(tmp_path, CASES[0])
    damage(root)
    with pytest.raises(UserError, match=message):
        export_nemo(root, tmp_path / "nemo")
    assert not (tmp_path / "nemo").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    root = checkpoint_of(tmp_path, CASES[0])
    with pytest.raises(UserError, match="something already there"):
        export_nemo(root, root)


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    root = checkpoint_of(tmp_path, Case("qwen2", tied=True, vocab_size=320))
    app = typer.Typer()
    app.command()(nemo)
    done = CliRunner().invoke(app, [str(root), str(tmp_path / "nemo"), "--dtype", "fp32"])
    assert done.exit_code == 0, done.output
    assert "iteration 0: 10 tensors" in done.output
    assert "note: output layer (320 x 64) written out" in done.output
    assert (tmp_path / "nemo/context/io.json").is_file()
