"""Two directories have one tokenizer, or the first difference is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from data_prep.same_tokenizer import (
    Difference,
    generation_ids,
    require_same_tokenizer,
    tokenizer_differences,
)
from megatron_soaes.errors import UserError


def make(directory: Path, tokens: str, end: object) -> Path:
    directory.mkdir()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    Tokenizer(BPE(vocabulary, [])).save(str(directory / "tokenizer.json"))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    return directory


def test_a_list_of_one_end_is_that_end(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one", "abc", 2), make(tmp_path / "other", "abc", [2])
    assert list(tokenizer_differences(one, other)) == []
    require_same_tokenizer(one, other)


def test_each_part_that_differs_is_told_once(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one", "abc", 2), make(tmp_path / "other", "acbd", [2, 1])
    assert list(tokenizer_differences(one, other)) == [
        Difference("vocabulary", "b", "1", "2"),
        Difference("generation", "eos_token_id", "2", "[2, 1]"),
    ]
    with pytest.raises(UserError, match="other: vocabulary, b: found 2; expected 1, as in"):
        require_same_tokenizer(one, other)


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    one = make(tmp_path / "one", "abc", 2)
    with pytest.raises(UserError, match=r"nowhere/tokenizer\.json: found no such file"):
        require_same_tokenizer(one, tmp_path / "nowhere")


def test_a_token_that_only_one_has_is_a_difference(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one", "abc", 2), make(tmp_path / "other", "abcd", 2)
    assert list(tokenizer_differences(one, other)) == [
        Difference("vocabulary", "d", "nothing", "3")
    ]


def test_generation_config_goes_before_config(tmp_path: Path) -> None:
    model = make(tmp_path / "model", "abc", 2)
    (model / "config.json").write_text('{"eos_token_id": 1, "pad_token_id": 0}')
    assert generation_ids(model) == {"eos_token_id": [2], "pad_token_id": [0]}


def test_an_empty_list_of_ends_is_none(tmp_path: Path) -> None:
    assert generation_ids(make(tmp_path / "model", "abc", [])) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "config.json: found a list"),
        ("{", "config.json: found invalid JSON"),
        (
            '{"eos_token_id": "</s>"}',
            "config.json: eos_token_id: found '</s>'; expected a token id",
        ),
        ('{"pad_token_id": [2, null]}', r"config.json: pad_token_id: found \[2, None\]"),
    ],
)
def test_a_config_without_ids_is_named(tmp_path: Path, content: str, message: str) -> None:
    model = make(tmp_path / "model", "abc", 2)
    (model / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        generation_ids(model)
