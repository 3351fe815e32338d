"""A target and its draft: what the engines exchange must mean the same to both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from megatron_soaes.errors import UserError
from megatron_soaes.export.trtllm.pair import check_pair
from megatron_soaes.export.trtllm.writer import export_trtllm
from tests.checkpoint.tiny import Case, make_model
from tests.export.ranks import read_config, write_config


@dataclass(frozen=True)
class Model:
    """An HF directory and the checkpoint exported from it."""

    hf_dir: Path
    checkpoint: Path

    def edit_json(self, name: str, **changes: Any) -> None:
        file = self.hf_dir / name
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        file.write_text(json.dumps(content | changes), encoding="utf-8")


def make(root: Path, case: Case) -> Model:
    model = Model(root / "hf", root / "out")
    make_model(model.hf_dir, case, dtype=torch.bfloat16)
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    tokenizer = Tokenizer(BPE(vocabulary, [("a", "b"), ("b", "c")]))
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(model.hf_dir / "tokenizer.json"))
    model.edit_json("tokenizer_config.json", eos_token="<end>")
    model.edit_json("generation_config.json", eos_token_id=5)
    export_trtllm(model.hf_dir, model.checkpoint)
    return model


@pytest.fixture
def target(tmp_path: Path) -> Model:
    return make(tmp_path / "target", Case("qwen2", layers=2))


@pytest.fixture
def draft(tmp_path: Path) -> Model:
    return make(tmp_path / "draft", Case("qwen2", tied=True, layers=1))


def problems(target: Model, draft: Model, served_length: int | None = None) -> list[str]:
    found = check_pair(
        target.checkpoint, draft.checkpoint, target.hf_dir, draft.hf_dir, served_length
    )
    return [str(problem).replace(f"{draft.hf_dir.parent}/", "") for problem in found]


def test_a_pair_fits(target: Model, draft: Model) -> None:
    assert problems(target, draft) == []


def test_vocabulary_and_logits_are_equal(target: Model, draft: Model) -> None:
    config = read_config(draft.checkpoint) | {"vocab_size": 256, "logits_dtype": "float16"}
    write_config(draft.checkpoint, config)
    assert problems(target, draft) == [
        "out/config.json: vocab_size: found 256; expected 250, as the target has it",
        "out/config.json: logits_dtype: found 'float16'; expected 'float32', as the target has it",
    ]


def test_the_draft_reaches_as_far_as_is_served(target: Model, draft: Model) -> None:
    config = read_config(draft.checkpoint) | {"max_position_embeddings": 128}
    write_config(draft.checkpoint, config)
    assert problems(target, draft) == [
        "out/config.json: max_position_embeddings: found 128; expected at least 256, the tokens "
        "that the target serves"
    ]
    assert problems(target, draft, served_length=128) == []


def save_tokenizer(model: Model, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(model.hf_dir / "tokenizer.json"))


def test_the_first_token_that_differs_is_named(target: Model, draft: Model) -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 4, "bc": 3}
    save_tokenizer(draft, vocabulary, [("a", "b"), ("b", "c")])
    assert problems(target, draft) == ["hf: vocabulary, ab: found 4; expected 3, as the target"]


def test_merges_and_added_tokens_are_compared(target: Model, draft: Model) -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    tokenizer = Tokenizer(BPE(vocabulary, [("b", "c"), ("a", "b")]))
    tokenizer.add_special_tokens(["<stop>"])
    tokenizer.save(str(draft.hf_dir / "tokenizer.json"))
    assert [p.split(": ")[1] for p in problems(target, draft)] == [
        "merges, rank 0", "added tokens, id 5",
    ]  # fmt: skip


def test_special_tokens_and_ids_of_the_end_are_compared(target: Model, draft: Model) -> None:
    draft.edit_json("tokenizer_config.json", pad_token="a")
    draft.edit_json("generation_config.json", eos_token_id=[5, 2])
    assert problems(target, draft) == [
        "hf: special tokens, pad_token: found a; expected None, as the target",
        "hf: generation, eos_token_id: found [5, 2]; expected 5, as the target",
    ]


def test_a_tokenizer_that_cannot_be_read_is_refused(target: Model, draft: Model) -> None:
    (draft.hf_dir / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"draft/hf/tokenizer\.json"):
        problems(target, draft)
