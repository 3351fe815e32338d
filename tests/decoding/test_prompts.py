"""Questions become token ids by the model's own tokenizer and template."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from data_prep.rehearsal.tokenizer import save_tokenizer, train_tokenizer
from megatron_soaes.decoding.prompts import load_tokenizer, render_prompt, stop_ids, text_of
from megatron_soaes.errors import UserError
from megatron_soaes.files import write_json


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "hf"
    text = "A question is asked of a model, and the model answers the question that was asked."
    save_tokenizer(train_tokenizer([text] * 10, 300), out)
    return out


@pytest.fixture(scope="module")
def tokenizer(hf_dir: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(hf_dir)


def test_plain_text_is_taken_as_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = render_prompt(tokenizer, "Is 7 prime?")
    assert text_of(tokenizer)(ids) == "Is 7 prime?"


def test_a_conversation_ends_with_the_beginning_of_the_answer(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids = render_prompt(tokenizer, [{"role": "user", "content": "Why?"}])
    assert tokenizer.decode(ids).endswith(
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_options_reach_the_template(hf_dir: Path) -> None:
    tokenizer = load_tokenizer(hf_dir)
    tokenizer.chat_template = "{{ messages[0].content }}{% if loud %}!{% endif %}"
    ids = render_prompt(tokenizer, [{"role": "user", "content": "Go"}], loud=True)
    assert tokenizer.decode(ids) == "Go!"


def test_a_conversation_needs_a_template(hf_dir: Path) -> None:
    tokenizer = load_tokenizer(hf_dir)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        render_prompt(tokenizer, [{"role": "user", "content": "Why?"}])


def test_special_tokens_leave_no_text(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("yes<|im_end|>").input_ids
    assert text_of(tokenizer)(ids) == "yes"


def test_every_declared_end_stops(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [290, 291]})
    write_json(tmp_path / "config.json", {"eos_token_id": 292})
    assert stop_ids(tokenizer, tmp_path) == tuple(sorted({290, 291, 292, tokenizer.eos_token_id}))


def test_a_model_without_these_files_stops_at_its_tokenizers_end(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert stop_ids(tokenizer, tmp_path) == (tokenizer.eos_token_id,)


def test_a_path_that_is_no_directory_is_not_looked_for_on_a_hub(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: found no such directory"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, hf_dir: Path, file: str) -> None:
    model = shutil.copytree(hf_dir, tmp_path / "model")
    (model / file).write_text("[]")
    with pytest.raises(UserError, match="model: found no readable tokenizer"):
        load_tokenizer(model)


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no readable tokenizer"):
        load_tokenizer(tmp_path)
