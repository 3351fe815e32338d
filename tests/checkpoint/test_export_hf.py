"""Exports: the import undone bit for bit, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from megatron_soaes.checkpoint.directory import HF_FILES, TRACKER, iteration_directory
from megatron_soaes.checkpoint.export_hf import export_hf
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.checkpoint.model_weights import read_weight
from megatron_soaes.checkpoint.torch_dist import TorchDistReader, TorchDistWriter
from megatron_soaes.errors import UserError
from megatron_soaes.models.families import weight_table
from megatron_soaes.models.weights import VOCABULARY
from megatron_soaes.recipe.shapes import read_shape
from tests.checkpoint.tiny import (
    FAMILY_CASES,
    ROPE_CASE,
    Case,
    assert_same_tensors,
    edit_config,
    make_model,
    reference_logits,
    tensors_of,
)
from tests.data_prep.conftest import save_tokenizer, train_tokenizer

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.mark.parametrize("case", [*FAMILY_CASES, ROPE_CASE], ids=lambda case: case.name)
def test_import_and_export_are_inverse(tmp_path: Path, case: Case) -> None:
    hf_dir = make_model(tmp_path / "hf", case)
    import_hf(hf_dir, tmp_path / "checkpoint", verify=False)
    report = export_hf(tmp_path / "checkpoint", tmp_path / "out", verify=False)
    assert_same_tensors(tmp_path / "out", hf_dir)
    assert read_shape(tmp_path / "out" / "config.json") == read_shape(hf_dir / "config.json")
    assert report.tensors == len(tensors_of(hf_dir))


def test_sharded_bf16_keeps_every_bit_and_dtype(tmp_path: Path) -> None:
    hf_dir = make_model(tmp_path / "hf", dtype=torch.bfloat16, shard_size="40KB")
    assert len(list(hf_dir.glob("*.safetensors"))) > 3
    import_hf(hf_dir, tmp_path / "checkpoint")
    report = export_hf(tmp_path / "checkpoint", tmp_path / "out", shard_bytes=60_000)
    assert len(report.files) > 2
    assert all((tmp_path / "out" / name).stat().st_size < 64_000 for name in report.files)
    assert_same_tensors(tmp_path / "out", hf_dir)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["torch_dtype"] == "bfloat16"


def test_transformers_loads_the_result(tmp_path: Path) -> None:
    hf_dir = make_model(tmp_path / "hf", ROPE_CASE)
    import_hf(hf_dir, tmp_path / "checkpoint")
    report = export_hf(tmp_path / "checkpoint", tmp_path / "out")
    assert report.parity is not None
    assert report.parity.complete
    tokens = torch.arange(200).unsqueeze(0)
    expected = reference_logits(hf_dir, tokens)
    assert torch.equal(reference_logits(tmp_path / "out", tokens), expected)


def test_the_files_of_the_model_come_along(tmp_path: Path, checkpoint_root: Path) -> None:
    export_hf(checkpoint_root, tmp_path / "out", verify=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out") is not None


def test_the_card_is_this_models_own(tmp_path: Path, checkpoint_root: Path) -> None:
    (checkpoint_root / HF_FILES / "README.md").write_text("# The base model", encoding="utf-8")
    (checkpoint_root / HF_FILES / "LICENSE").write_text("terms", encoding="utf-8")
    export_hf(checkpoint_root, tmp_path / "without", verify=False)
    assert not (tmp_path / "without/README.md").exists()
    export_hf(checkpoint_root, tmp_path / "with", readme="# The new model\n", verify=False)
    assert (tmp_path / "with/README.md").read_text(encoding="utf-8") == "# The new model\n"
    assert (tmp_path / "with/LICENSE").read_text(encoding="utf-8") == "terms"


def test_a_tokenizer_saved_by_transformers_5_is_written_as_4_reads_it(
    tmp_path: Path, checkpoint_root: Path
) -> None:
    template = "{{ messages }}"
    save_tokenizer(
        checkpoint_root / HF_FILES,
        train_tokenizer(),
        tokenizer_class="TokenizersBackend",
        extra_special_tokens=["<|im_end|>"],
    )
    (checkpoint_root / HF_FILES / "chat_template.jinja").write_text(template, encoding="utf-8")
    export_hf(checkpoint_root, tmp_path / "out", verify=False)
    written = json.loads((tmp_path / "out/tokenizer_config.json").read_text(encoding="utf-8"))
    assert written == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<|im_end|>"],
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == template
    assert tokenizer.convert_ids_to_tokens([2]) == ["<|im_end|>"]
    assert tokenizer.decode([2], skip_special_tokens=True) == ""


def test_another_dtype_on_request(tmp_path: Path, hf_dir: Path, checkpoint_root: Path) -> None:
    export_hf(checkpoint_root, tmp_path / "out", dtype=torch.float16, verify=False)
    exported, original = tensors_of(tmp_path / "out"), tensors_of(hf_dir)
    assert all(torch.equal(exported[name], t.half()) for name, t in original.items())
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["torch_dtype"] == "float16"


def rewrite(root: Path, *, padding: int = 0, drop: str = "", extra: str = "") -> None:
    """Write the checkpoint again as iteration 7: padded, without a weight, with another tensor."""
    shape = read_shape(root / HF_FILES / "config.json")
    source = TorchDistReader(iteration_directory(root, 0))
    target = iteration_directory(root, 7)
    target.mkdir()
    with TorchDistWriter(target, {}) as writer:
        for weight in weight_table(shape):
            rows = padding if weight.transform is VOCABULARY else 0
            for layer in range(shape.layers) if weight.stacked else [None]:
                tensor = read_weight(source, weight, shape, layer)
                if rows:
                    tensor = torch.cat([tensor, torch.full((rows, shape.hidden), 9.0)])
                if layer is not None:
                    tensor = tensor.unsqueeze(0)
                size = [shape.layers, *tensor.shape[1:]] if weight.stacked else tensor.shape
                if weight.key != drop:
                    writer.write(weight.key, size, [layer or 0, *[0] * (tensor.dim() - 1)], tensor)
        if extra:
            writer.write(extra, [4], [0], torch.zeros(4))
    (root / TRACKER).write_text("7\n", encoding="utf-8")


def test_padding_and_optimizer_state_of_a_training_run_stay_behind(
    tmp_path: Path, hf_dir: Path, checkpoint_root: Path
) -> None:
    rewrite(checkpoint_root, padding=6, extra="optimizer.state.exp_avg.decoder.final_layernorm")
    assert export_hf(checkpoint_root, tmp_path / "out").iteration == 7
    assert_same_tensors(tmp_path / "out", hf_dir)


def test_an_older_iteration_on_request(tmp_path: Path, checkpoint_root: Path) -> None:
    rewrite(checkpoint_root, padding=6)
    report = export_hf(checkpoint_root, tmp_path / "out", iteration=0, verify=False)
    assert report.iteration == 0


def test_a_weight_config_json_does_not_know_is_not_lost_silently(
    tmp_path: Path, checkpoint_root: Path
) -> None:
    rewrite(checkpoint_root, extra="decoder.layers.self_attention.linear_qkv.bias")
    with pytest.raises(UserError, match=r"linear_qkv.bias: found a weight this model does not"):
        export_hf(checkpoint_root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_weight_is_named(tmp_path: Path, checkpoint_root: Path) -> None:
    rewrite(checkpoint_root, drop="output_layer.weight")
    with pytest.raises(UserError, match=r"output_layer.weight: found nothing; expected shape"):
        export_hf(checkpoint_root, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 260}, r"word_embeddings.weight: found shape \[250, 64\]"),
        ({"num_hidden_layers": 3}, r"layer_norm_weight: found shape \[4, 64\]"),
        ({"tie_word_embeddings": True}, r"output_layer.weight: found a weight this model does not"),
    ],
    ids=str,
)
def test_the_config_of_another_model_is_refused(
    tmp_path: Path, checkpoint_root: Path, change: dict[str, object], message: str
) -> None:
    edit_config(checkpoint_root / HF_FILES, **change)
    with pytest.raises(UserError, match=message):
        export_hf(checkpoint_root, tmp_path / "out")


def test_a_checkpoint_without_the_files_of_its_model_is_refused(
    tmp_path: Path, checkpoint_root: Path
) -> None:
    (checkpoint_root / HF_FILES / "config.json").unlink()
    with pytest.raises(UserError, match=r"Copy config.json and the tokenizer files"):
        export_hf(checkpoint_root, tmp_path / "out")


def test_nothing_is_overwritten(tmp_path: Path, checkpoint_root: Path) -> None:
    with pytest.raises(UserError, match="found something already there"):
        export_hf(checkpoint_root, checkpoint_root)
