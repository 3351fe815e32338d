from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_prep.rehearsal.tokenizer import DEFAULT_SYSTEM_PROMPT, SPECIAL_TOKENS, train_tokenizer
from megatron_soaes.errors import UserError

MIXED = st.text(st.sampled_from("国企ab ,。.\n\t!'0123é\u0301🙂<|>_end"))


@pytest.fixture(scope="module")
def fast(corpus: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(corpus / "tokenizer")


@pytest.fixture(scope="module")
def of_model(corpus: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(corpus / "base-init")


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False)]


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(), MIXED))
def test_any_text_comes_back(fast: PreTrainedTokenizerFast, text: str) -> None:
    assert fast.decode(fast.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(), MIXED))
def test_the_model_directory_encodes_alike(
    fast: PreTrainedTokenizerFast, of_model: PreTrainedTokenizerFast, text: str
) -> None:
    """Transformers 5 rebuilds a Qwen2 tokenizer there, with composed characters (NFC)."""
    composed = unicodedata.normalize("NFC", text)
    assert fast.encode(composed) == of_model.encode(composed)


def test_the_model_directory_encodes_the_corpus_alike(
    corpus: Path, fast: PreTrainedTokenizerFast, of_model: PreTrainedTokenizerFast
) -> None:
    for part in ("general", "domain"):
        for line in (corpus / part / "valid.jsonl").read_text(encoding="utf-8").splitlines():
            text = unicodedata.normalize("NFC", json.loads(line)["text"])
            assert fast.encode(text) == of_model.encode(text)


def test_special_tokens(fast: PreTrainedTokenizerFast) -> None:
    assert len(fast) == 2048
    assert fast.eos_token == "<|endoftext|>"
    assert fast.pad_token == "<|pad|>"
    assert fast.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert fast.encode("<|im_start|>") == [1]
    assert fast.decode([1, 2], skip_special_tokens=True) == ""


def test_digits_and_punctuation_stand_alone(fast: PreTrainedTokenizerFast) -> None:
    assert pieces(fast, "2024") == ["2", "0", "2", "4"]
    assert pieces(fast, "（），。！") == ["（", "）", "，", "。", "！"]


def test_a_name_is_cut_alike_in_every_sentence_and_never_inside_a_character(
    corpus: Path, fast: PreTrainedTokenizerFast
) -> None:
    world = json.loads((corpus / "world.json").read_text(encoding="utf-8"))
    for company in world["companies"]:
        alone = pieces(fast, company["name"])
        assert all("\ufffd" not in piece for piece in alone)
        for sentence in ("{}的董事长是谁", "截至年末，{}资产负债率", "为{}实现营业收入"):
            cut = pieces(fast, sentence.format(company["name"]))
            assert any(cut[i : i + len(alone)] == alone for i in range(len(cut))), cut


def test_chat_template(fast: PreTrainedTokenizerFast) -> None:
    user, reply = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好"}
    system = {"role": "system", "content": "简短回答"}
    assert fast.apply_chat_template([user, reply], tokenize=False) == (
        f"<|im_start|>system\n{DEFAULT_SYSTEM_PROMPT}<|im_end|>\n"
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n您好<|im_end|>\n"
    )
    prompt = fast.apply_chat_template([system, user], tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\n简短回答<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_training_is_deterministic_and_text_may_hold_special_tokens() -> None:
    texts = ["国有企业 <|im_end|> the state owned enterprise 深化改革"] * 20
    first, second = (train_tokenizer(texts, 310) for _ in range(2))
    assert first.to_str() == second.to_str()
    assert isinstance(first, Tokenizer)
    assert first.get_vocab_size() == 310


@pytest.mark.parametrize("vocab_size", [265, 50_000])
def test_a_vocabulary_that_does_not_fit_the_text_is_refused(vocab_size: int) -> None:
    with pytest.raises(UserError, match="Change the vocabulary's size"):
        train_tokenizer(["国有企业深化改革，提高核心竞争力。"] * 10, vocab_size)
