"""Exports: every HF matrix comes back bit for bit, whole directories or none, and refusals."""

from __future__ import annotations

import filecmp
import os
import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.errors import UserError
from megatron_soaes.export import source as sources
from megatron_soaes.export.source import HFSource
from megatron_soaes.export.trtllm.writer import export_trtllm
from megatron_soaes.recipe.schema import FamilyName
from tests.checkpoint.test_export_hf import rewrite
from tests.checkpoint.tiny import (
    ARCHITECTURES,
    LLAMA3_ROPE,
    Case,
    edit_config,
    edit_weights,
    make_model,
    tensors_of,
)
from tests.export.conftest import ModelOf
from tests.export.ranks import hf_tensors, read_config, read_ranks


def assert_holds(directory: Path, hf_dir: Path, vocab_size: int = 250) -> dict[str, Tensor]:
    """The rank files are the model; with a larger vocabulary, up to its own. Returns what is."""
    found, expected = hf_tensors(read_config(directory), read_ranks(directory)), tensors_of(hf_dir)
    expected.setdefault("lm_head.weight", expected["model.embed_tokens.weight"])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        rows = vocab_size if len(tensor) == 250 else len(tensor)
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name][:rows], tensor[:rows]), name
    return found


@pytest.mark.parametrize(("family", "tied"), product(ARCHITECTURES, (True, False)), ids=str)
def test_the_ranks_together_are_the_model(
    tmp_path: Path, model_of: ModelOf, family: FamilyName, tied: bool
) -> None:
    hf_dir = model_of(Case(family, tied))
    for ways, stages in product((1, 2, 4, 8), (1, 2, 3)):
        out = tmp_path / f"{ways}-{stages}"
        report = export_trtllm(hf_dir, out, tensor_parallel=ways, pipeline_parallel=stages)
        assert report.ranks == len(read_ranks(out)) == ways * stages
        assert_holds(out, hf_dir)


def test_a_megatron_checkpoint_gives_the_same_files(tmp_path: Path, model_of: ModelOf) -> None:
    hf_dir = model_of(Case("qwen3", tied=True))
    import_hf(hf_dir, tmp_path / "checkpoint", verify=False)
    for source, out in ((hf_dir, "hf"), (tmp_path / "checkpoint", "megatron")):
        export_trtllm(source, tmp_path / out, tensor_parallel=2, pipeline_parallel=2)
    names = sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert names == ["config.json", *(f"rank{rank}.safetensors" for rank in range(4))]
    _, different, errors = filecmp.cmpfiles(
        tmp_path / "hf", tmp_path / "megatron", names, shallow=False
    )
    assert (different, errors) == ([], [])


def test_padding_rows_of_a_training_run_stay_behind(tmp_path: Path) -> None:
    hf_dir = make_model(tmp_path / "hf", Case("llama"))
    import_hf(hf_dir, tmp_path / "checkpoint", verify=False)
    rewrite(tmp_path / "checkpoint", padding=6)
    for source, iteration in ((hf_dir, None), (tmp_path / "checkpoint", 7)):
        export_trtllm(source, tmp_path / source.name / "out", iteration=iteration)
    trained, original = (
        read_ranks(tmp_path / n / "out")[0]["lm_head.weight"] for n in ("checkpoint", "hf")
    )
    assert torch.equal(trained, original)


def test_the_configuration_writes_out_what_has_wrong_defaults(
    tmp_path: Path, model_of: ModelOf
) -> None:
    export_trtllm(model_of(Case("qwen3")), tmp_path / "out", tensor_parallel=2)
    config = read_config(tmp_path / "out")
    del config["producer"]
    assert config == {
        "architecture": "Qwen3ForCausalLM", "qwen_type": "qwen3", "seq_length": 8192,
        "use_logn_attn": False, "dtype": "bfloat16", "logits_dtype": "float32",
        "vocab_size": 250, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_size": 16, "intermediate_size": 96, "hidden_act": "silu",
        "norm_epsilon": 1e-6, "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": 256, "rotary_embedding_dim": 16, "rotary_base": 10000.0,
        "rotary_scaling": None, "attn_bias": False, "mlp_bias": False,
        "use_parallel_embedding": False, "embedding_sharding_dim": 0,
        "share_embedding_table": False, "tie_word_embeddings": False,
        "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "exclude_modules": None},
    }  # fmt: skip


def test_the_families_differ_in_the_configuration(tmp_path: Path, model_of: ModelOf) -> None:
    rope = dict(LLAMA3_ROPE, rope_theta=5000.0)
    export_trtllm(model_of(Case("llama", rope=rope)), tmp_path / "llama")
    llama = read_config(tmp_path / "llama")
    assert llama["architecture"] == "LlamaForCausalLM"
    assert not {"qwen_type", "seq_length"} & llama.keys()
    assert llama["rotary_base"] == 5000.0
    assert llama["rotary_scaling"] == {k: v for k, v in rope.items() if k != "rope_theta"}
    export_trtllm(model_of(Case("qwen2", tied=True)), tmp_path / "qwen2")
    qwen2 = read_config(tmp_path / "qwen2")
    assert (qwen2["qwen_type"], qwen2["attn_bias"], qwen2["tie_word_embeddings"]) == (
        "qwen2", True, True,
    )  # fmt: skip


def test_a_qwen_model_without_its_rope_base_is_refused(tmp_path: Path) -> None:
    hf_dir = make_model(tmp_path / "hf", Case("qwen2"))
    edit_config(hf_dir, rope_parameters=None)
    with pytest.raises(UserError, match=r"rope_theta: found nothing"):
        export_trtllm(hf_dir, tmp_path / "out")


def test_vocabularies_are_read_in_blocks(
    tmp_path: Path, model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 7 * 128)
    export_trtllm(model_of(Case()), tmp_path / "out", tensor_parallel=4)
    assert_holds(tmp_path / "out", model_of(Case()))


def test_fp16_keeps_every_value_that_fits(tmp_path: Path, model_of: ModelOf) -> None:
    export_trtllm(model_of(Case()), tmp_path / "out", dtype="fp16")
    found = hf_tensors(read_config(tmp_path / "out"), read_ranks(tmp_path / "out"))
    assert read_config(tmp_path / "out")["dtype"] == "float16"
    for name, tensor in tensors_of(model_of(Case())).items():
        assert torch.equal(found[name], tensor.half())


def test_a_value_beyond_fp16_is_refused_and_named(tmp_path: Path) -> None:
    hf_dir = make_model(tmp_path / "hf", Case(), dtype=torch.bfloat16)
    name = "model.layers.2.mlp.up_proj.weight"
    edit_weights(hf_dir, lambda tensors: tensors[name][0].fill_(1e5))
    with pytest.raises(UserError, match=f"{name}: found values up to 99840.*Export as bf16"):
        export_trtllm(hf_dir, tmp_path / "out", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def with_tokens(directory: Path, count: int) -> Path:
    """An HF directory with 250 vocabulary rows and a tokenizer of `count` tokens."""
    make_model(directory, Case("qwen2", tied=True), dtype=torch.bfloat16)
    vocabulary = {f"word{number}": number for number in range(count)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="word0"))
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def test_rows_without_a_token_are_cut_on_request(tmp_path: Path) -> None:
    hf_dir = with_tokens(tmp_path / "hf", 240)
    report = export_trtllm(hf_dir, tmp_path / "out", tensor_parallel=4, vocab_size=241)
    assert report.vocab_size == read_config(tmp_path / "out")["vocab_size"] == 241
    assert len(assert_holds(tmp_path / "out", hf_dir, 241)["lm_head.weight"]) == 241


def test_rows_that_are_added_repeat_one_without_a_token(tmp_path: Path) -> None:
    hf_dir = with_tokens(tmp_path / "hf", 249)
    export_trtllm(hf_dir, tmp_path / "out", tensor_parallel=4, vocab_size=263)
    found = assert_holds(tmp_path / "out", hf_dir)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert found[name].shape == (263, 64)
        assert torch.equal(found[name][250:], found[name][249:250].expand(13, -1))


def test_no_token_loses_its_row_and_none_is_doubled(tmp_path: Path, model_of: ModelOf) -> None:
    with pytest.raises(UserError, match="vocab_size: found 239; expected 240 at least"):
        export_trtllm(with_tokens(tmp_path / "a", 240), tmp_path / "out", vocab_size=239)
    with pytest.raises(UserError, match="each of the model's rows is a token's"):
        export_trtllm(with_tokens(tmp_path / "b", 250), tmp_path / "out", vocab_size=256)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        export_trtllm(model_of(Case()), tmp_path / "out", vocab_size=256)


def test_what_is_there_is_not_overwritten(tmp_path: Path, model_of: ModelOf) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="something already there"):
        export_trtllm(model_of(Case()), tmp_path / "out")


def test_dtype_and_cut_are_checked_before_anything_is_written(
    tmp_path: Path, model_of: ModelOf
) -> None:
    with pytest.raises(UserError, match="dtype: found 'fp8'; expected bf16 or fp16"):
        export_trtllm(model_of(Case()), tmp_path / "out", dtype="fp8")
    with pytest.raises(UserError, match="tp: found 3"):
        export_trtllm(model_of(Case()), tmp_path / "out", tensor_parallel=3)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_noticed_first(
    tmp_path: Path, model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="1,000 bytes free"):
        export_trtllm(model_of(Case()), tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_nothing(
    tmp_path: Path, model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = HFSource.layer

    def failing(self: HFSource, index: int) -> dict[str, Tensor]:
        if index == 2:
            raise OSError("the disk went away")
        return whole(self, index)

    monkeypatch.setattr(HFSource, "layer", failing)
    with pytest.raises(OSError, match="the disk went away"):
        export_trtllm(model_of(Case()), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_writes_that_the_system_cuts_short_are_continued(
    tmp_path: Path, model_of: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:1000], at))
    export_trtllm(model_of(Case()), tmp_path / "out", tensor_parallel=2)
    assert_holds(tmp_path / "out", model_of(Case()))


def test_progress_ends_with_all_parameters(tmp_path: Path, model_of: ModelOf) -> None:
    seen: list[tuple[int, int]] = []
    export_trtllm(
        model_of(Case()), tmp_path / "out", progress=lambda done, total: seen.append((done, total))
    )
    assert (
        seen[-1][0] == seen[-1][1] == sum(t.numel() for t in tensors_of(model_of(Case())).values())
    )
    assert seen == sorted(seen)
