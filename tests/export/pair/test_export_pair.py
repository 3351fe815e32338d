"""`export_pair`: what is in the folder, and what is refused before there is one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from megatron_soaes.errors import UserError
from megatron_soaes.export import pair as pair_module
from megatron_soaes.export.pair import PairOptions, export_pair, plan_deployment
from megatron_soaes.export.serving.commands import serve_files
from megatron_soaes.export.serving.readme import readme
from megatron_soaes.export.source import open_source
from megatron_soaes.export.trtllm.check import check
from tests.checkpoint.tiny import Case, tensors_of
from tests.export.pair.conftest import edit_json, make, save_tokenizer


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_models_keep_every_number_and_share_a_vocabulary_size(
    engine_pair: Path, target: Path, draft: Path
) -> None:
    written, original = tensors_of(engine_pair / "hf/target"), tensors_of(target)
    assert written.keys() == original.keys()
    assert all(torch.equal(written[name], original[name]) for name in original)
    small, before = tensors_of(engine_pair / "hf/draft"), tensors_of(draft)
    embedding = small.pop("model.embed_tokens.weight")
    rows: Tensor = before.pop("model.embed_tokens.weight")
    assert torch.equal(embedding, torch.cat([rows, rows[-1:].expand(6, -1)]))
    assert all(torch.equal(small[name], before[name]) for name in before)
    configs = [read(engine_pair / "hf" / role / "config.json") for role in ("target", "draft")]
    assert [config["vocab_size"] for config in configs] == [256, 256]
    checkpoints = [
        read(engine_pair / "trtllm" / role / "config.json") for role in ("target", "draft")
    ]
    assert [config["vocab_size"] for config in checkpoints] == [256, 256]


def test_checkpoints_for_engines_break_no_rule(engine_pair: Path) -> None:
    for role, ranks in (("target", 4), ("draft", 1)):
        report = check(engine_pair / "trtllm" / role, engine_pair / "hf" / role)
        assert (report.ranks, report.problems) == (ranks, [])


def test_transformers_loads_the_models(hf_pair: Path) -> None:
    tokens = torch.tensor([[0, 1, 2]])
    for role in ("target", "draft"):
        model = transformers.AutoModelForCausalLM.from_pretrained(hf_pair / "hf" / role)
        assert model.dtype == torch.float16
        assert model.float()(tokens).logits.shape == (1, 3, 256)
        assert transformers.AutoTokenizer.from_pretrained(hf_pair / "hf" / role)("ab").input_ids


def test_the_folders_hold_what_their_version_can_use(engine_pair: Path, hf_pair: Path) -> None:
    def names(folder: Path) -> set[str]:
        inside = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        return {name for name in inside if not name.startswith(("hf/", "trtllm/"))}

    both = {
        "README.md", "hf", "serve", "serve/trtllm-serve.sh", "serve/trtllm-serve.yaml",
        "serve/vllm.sh", "serve/sglang.sh", "triton",
    }  # fmt: skip
    assert names(engine_pair) == both | {
        "trtllm", "engines.json", "build_engines.sh", "run_speculative.py", "run_speculative.json",
        "triton/fill_templates.sh",
    }  # fmt: skip
    repository = "triton/models/tensorrt_llm"
    assert names(hf_pair) == both | {
        "triton/models", repository, f"{repository}/1", f"{repository}/1/model.yaml",
    }  # fmt: skip


def test_the_draft_length_comes_from_the_measurement(engine_pair: Path) -> None:
    settings = read(engine_pair / "run_speculative.json")
    # (1 - 0.8 ** (k + 1)) / (0.2 * (0.1 * k + 1)) is largest at 6: 2.470.
    assert settings["draft_length"] == 6
    assert settings["max_input_len"] == 256 - 7


def test_a_vocabulary_that_cannot_grow_is_met_by_cutting_the_other(
    tmp_path: Path, target: Path
) -> None:
    full = make(tmp_path / "full", Case("qwen2", tied=True, vocab_size=6, layers=1))
    report = export_pair(target, full, tmp_path / "out", PairOptions("1.3.0rc24"))
    assert report.deployment.vocab_size == 6
    assert tensors_of(tmp_path / "out/hf/target")["lm_head.weight"].shape == (6, 64)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"tokens": "a c b ab bc"}, "vocabulary, b: found 2; expected 1"),
        ({"merges": "b c,a b"}, "merges, rank 0"),
        ({"added": ("<end>", "<more>")}, "added tokens, id 6"),
    ],
)
def test_another_tokenizer_is_refused(
    tmp_path: Path, target: Path, own_draft: Path, changes: dict[str, Any], found: str
) -> None:
    save_tokenizer(own_draft, **changes)
    with pytest.raises(UserError, match=found):
        export_pair(target, own_draft, tmp_path / "out", PairOptions("1.2.1"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["eos_token_id", "pad_token_id"])
def test_other_ids_of_the_end_are_refused(
    tmp_path: Path, target: Path, own_draft: Path, field: str
) -> None:
    edit_json(own_draft / "generation_config.json", **{field: 3})
    with pytest.raises(UserError, match=f"generation, {field}: found 3"):
        export_pair(target, own_draft, tmp_path / "out", PairOptions("1.2.1"))


def test_another_end_token_is_refused(tmp_path: Path, target: Path, own_draft: Path) -> None:
    edit_json(own_draft / "tokenizer_config.json", eos_token="c")
    with pytest.raises(UserError, match="special tokens, eos_token: found c; expected <end>"):
        export_pair(target, own_draft, tmp_path / "out", PairOptions("1.2.1"))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (PairOptions("0.12.0"), "--trtllm-version: found 0.12.0"),
        (PairOptions("2.0"), "--trtllm-version: found 2.0"),
        (PairOptions("latest"), "--trtllm-version: found 'latest'"),
        (PairOptions("1.3.0rc24", tensor=2, draft_tensor=1), "--draft-tp: found 1 beside --tp 2"),
        (PairOptions("1.3.0rc24", pipeline=2), "--pp: found 2"),
        (PairOptions("1.2.1", tensor=3), "tp: found 3"),
        (PairOptions("1.2.1", draft_tensor=3), "--draft-tp: found 3"),
        (PairOptions("1.2.1", pipeline=3), "pp: found 3"),
        (PairOptions("1.2.1", dtype="fp32"), "--dtype: found fp32"),
        (PairOptions("1.2.1", draft_length=0), "--draft-length: found 0"),
        (PairOptions("1.2.1", max_seq_len=257), "--max-seq-len: found 257; expected 1 to 256"),
        (PairOptions("1.2.1", max_seq_len=64, max_input_len=60), "--max-input-len: found 60"),
        (PairOptions("1.2.1", max_batch_size=0), "--max-batch-size: found 0"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    tmp_path: Path, target: Path, draft: Path, options: PairOptions, found: str
) -> None:
    with pytest.raises(UserError, match=found):
        export_pair(target, draft, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


def test_a_family_without_engines_in_the_version_is_refused(tmp_path: Path) -> None:
    models = [
        make(tmp_path / role, Case("qwen3", layers=1, vocab_size=250))
        for role in ("target", "draft")
    ]
    with pytest.raises(UserError, match=r"target: qwen3 with TensorRT-LLM 0\.21\.0.*1\.0\.0"):
        export_pair(models[0], models[1], tmp_path / "out", PairOptions("0.21.0"))


def test_a_draft_with_fewer_ranks_has_engines_only(target: Path, draft: Path) -> None:
    sources = {"target": open_source(target), "draft": open_source(draft)}
    sources["draft"].shape = replace(sources["draft"].shape, ffn=90)
    deployment = plan_deployment(sources, PairOptions("1.2.1", tensor=4, draft_tensor=2))
    assert serve_files(deployment) == {}
    assert "this draft cannot be cut into 4" in readme(deployment)
    with pytest.raises(UserError, match="--draft-tp: found 4"):
        plan_deployment(sources, PairOptions("1.3.0rc24", tensor=4))


def test_what_is_there_stays(tmp_path: Path, target: Path, draft: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out: found something already there"):
        export_pair(target, draft, tmp_path / "out", PairOptions("1.2.1"))


def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, target: Path, draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pair_module, "_write_texts", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_pair(target, draft, tmp_path / "out", PairOptions("1.2.1"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_an_end_is_refused(tmp_path: Path) -> None:
    models = [make(tmp_path / role, Case("llama", layers=1)) for role in ("target", "draft")]
    for model in models:
        (model / "generation_config.json").unlink()
        edit_json(model / "config.json", eos_token_id=None)
    with pytest.raises(UserError, match="eos_token_id: found nothing"):
        export_pair(models[0], models[1], tmp_path / "out", PairOptions("1.2.1"))
