"""The tokenizer is the one transformers would load; the fast library is held to the slow one."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastokens
import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from data_prep import encoders
from data_prep.convert import ConvertOptions, ConvertSummary, convert
from data_prep.encoders import FastokensEncoder, HuggingFaceEncoder, Ids, Lengths, find_difference
from data_prep.indexed import open_indexed
from data_prep.tokenizer import TokenizerInfo, load_tokenizer
from megatron_soaes.errors import UserError

TEXTS = ["the quick brown fox", "中央企业", "the lazy dog <|im_end|>"]

Convert = Callable[..., ConvertSummary]


@pytest.fixture
def run(corpus: Callable[..., Path], tmp_path: Path, model: Path) -> Convert:
    path = corpus(TEXTS)

    def convert_texts(**options: Any) -> ConvertSummary:
        arguments = {"output_prefix": tmp_path / "out", "tokenizer_model": model, **options}
        return convert(ConvertOptions((str(path),), **arguments))

    return convert_texts


def with_begin_of_text(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a post-processor such as Llama 3 has."""
    llama = Tokenizer.from_str(tokenizer.to_str())
    llama.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A",
        pair="<|im_start|> $A $B",
        special_tokens=[("<|im_start|>", llama.token_to_id("<|im_start|>"))],
    )
    return llama


@pytest.mark.parametrize("llama", [False, True], ids=["qwen", "llama"])
def test_tokenizer_is_what_transformers_loads(
    tokenizer: Tokenizer, make_model: Callable[..., Path], run: Convert, llama: bool
) -> None:
    shape = {"bos_token": "<|im_start|>", "add_bos_token": True} if llama else {}
    model = make_model(with_begin_of_text(tokenizer) if llama else tokenizer, **shape)
    oracle = PreTrainedTokenizerFast.from_pretrained(model)
    info, _ = load_tokenizer(model, add_special_tokens=True)
    assert info.vocab_size == len(oracle)
    assert (info.eod_token, info.eod_id) == (oracle.eos_token, oracle.eos_token_id)

    dataset = open_indexed(run(tokenizer_model=model).datasets["text"])
    assert [tokens.tolist() for tokens in dataset] == [oracle(text).input_ids for text in TEXTS]


def test_begin_of_text_can_be_left_out(
    tokenizer: Tokenizer, make_model: Callable[..., Path], run: Convert
) -> None:
    model = make_model(with_begin_of_text(tokenizer))
    summary = run(tokenizer_model=model, include_special_tokens=False)
    documents = [tokens.tolist() for tokens in open_indexed(summary.datasets["text"])]
    assert documents == [tokenizer.encode(text).ids for text in TEXTS]


@pytest.mark.parametrize("llama", [False, True], ids=["qwen", "llama"])
@pytest.mark.parametrize("backend", ["fastokens", "tokenizers"])
def test_special_tokens_in_a_text_are_ids_or_plain_text(
    *,
    tokenizer: Tokenizer,
    make_model: Callable[..., Path],
    corpus: Callable[..., Path],
    run: Convert,
    tmp_path: Path,
    backend: str,
    llama: bool,
) -> None:
    model = make_model(with_begin_of_text(tokenizer) if llama else tokenizer)
    text = "a<|endoftext|>b<|im_start|>"
    corpus([text])
    begin = [tokenizer.token_to_id("<|im_start|>")] * llama
    for plain in (False, True):
        summary = run(
            tokenizer_model=model,
            backend=backend,
            plain_special_tokens=plain,
            output_prefix=tmp_path / f"plain-{plain}",
        )
        (ids,) = (tokens.tolist() for tokens in open_indexed(summary.datasets["text"]))
        # What the tokenizer itself puts before a text stays a token either way.
        assert ids[: len(begin)] == begin
        special = {0, 1, 2} & set(ids[len(begin) :])
        assert special == (set() if plain else {0, 1})
        assert tokenizer.decode(ids[len(begin) :], skip_special_tokens=False) == text
        recorded = json.loads(summary.manifest.read_text("utf-8"))["run"]["tokenizer"]
        assert recorded["plain_special_tokens"] is plain


def test_a_fast_encoder_that_makes_special_tokens_of_plain_text_is_not_used(
    run: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = FastokensEncoder.__init__

    def forget(self: FastokensEncoder, info: TokenizerInfo) -> None:
        honest(self, replace(info, plain_special_tokens=False))

    monkeypatch.setattr(FastokensEncoder, "__init__", forget)
    summary = run(plain_special_tokens=True)
    assert summary.backend == "tokenizers"
    assert "<|endoftext|>" in summary.backend_reason


def test_model_may_be_a_tokenizer_file(run: Convert, model: Path, tmp_path: Path) -> None:
    by_directory = run(append_eod=True).datasets["text"]
    by_file = run(
        append_eod=True,
        tokenizer_model=model / "tokenizer.json",
        output_prefix=tmp_path / "by-file",
    ).datasets["text"]
    assert Path(f"{by_file}.bin").read_bytes() == Path(f"{by_directory}.bin").read_bytes()


def test_padding_and_truncation_of_the_file_are_not_applied(
    tokenizer: Tokenizer, make_model: Callable[..., Path], run: Convert
) -> None:
    cut = Tokenizer.from_str(tokenizer.to_str())
    cut.enable_truncation(max_length=2)
    cut.enable_padding(length=9)
    summary = run(tokenizer_model=make_model(cut))
    assert summary.backend == "fastokens"
    documents = [tokens.tolist() for tokens in open_indexed(summary.datasets["text"])]
    assert documents == [tokenizer.encode(text).ids for text in TEXTS]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pad_token": "<pad>"}, "no token '<pad>'"),
        ({"added_tokens_decoder": {"7": {"content": "<|im_end|>"}}}, "id 2 for '<|im_end|>'"),
        ({"bos_token": "<|im_start|>", "add_bos_token": True}, "a post-processor that adds"),
    ],
)
def test_a_configuration_that_changes_the_ids_is_refused(
    tokenizer: Tokenizer,
    make_model: Callable[..., Path],
    config: dict[str, Any],
    message: str,
) -> None:
    model = make_model(tokenizer, **config)
    with pytest.raises(UserError) as error:
        load_tokenizer(model, add_special_tokens=True)
    assert message in str(error.value)


def test_missing_and_broken_tokenizers_are_named(tmp_path: Path, model: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path, add_special_tokens=True)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: found"):
        load_tokenizer(tmp_path, add_special_tokens=True)
    shutil.copy(model / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: found invalid JSON"):
        load_tokenizer(tmp_path, add_special_tokens=True)


def test_append_eod_needs_an_eos_token(
    run: Convert, tokenizer: Tokenizer, make_model: Callable[..., Path]
) -> None:
    model = make_model(tokenizer, eos_token=None)
    with pytest.raises(UserError, match=r"tokenizer_config\.json: found no eos_token"):
        run(append_eod=True, tokenizer_model=model)
    assert run(tokenizer_model=model).documents == 3


def test_ids_that_the_token_type_cannot_hold_are_refused(
    run: Convert, tokenizer: Tokenizer, make_model: Callable[..., Path]
) -> None:
    description = json.loads(tokenizer.to_str())
    description["added_tokens"][1]["id"] = 70_000
    description["model"]["vocab"]["<|im_start|>"] = 70_000
    model = make_model(Tokenizer.from_str(json.dumps(description)))
    with pytest.raises(UserError, match="the id 70000 in a vocabulary of"):
        run(tokenizer_model=model)


def test_fastokens_is_used_where_it_agrees(run: Convert, tmp_path: Path) -> None:
    fast = run()
    slow = run(backend="tokenizers", output_prefix=tmp_path / "slow")
    assert (fast.backend, slow.backend) == ("fastokens", "tokenizers")
    for suffix in (".bin", ".idx"):
        one, other = (Path(f"{s.datasets['text']}{suffix}") for s in (fast, slow))
        assert one.read_bytes() == other.read_bytes()


def lies_about(text: str) -> Callable[[FastokensEncoder, list[str]], tuple[Ids, Lengths]]:
    """An `encode_batch` that gets the first id of one text wrong."""
    honest = FastokensEncoder.encode_batch

    def encode_batch(self: FastokensEncoder, texts: list[str]) -> tuple[Ids, Lengths]:
        ids, lengths = honest(self, texts)
        if text in texts:
            ids = ids.copy()
            ids[lengths[: texts.index(text)].sum()] ^= 1
        return ids, lengths

    return encode_batch


@pytest.mark.parametrize("text", [encoders.PROBES[5], TEXTS[1]], ids=["probe", "first batch"])
def test_a_fast_encoder_that_lies_is_not_used(
    run: Convert, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(FastokensEncoder, "encode_batch", lies_about(text))
    with pytest.raises(UserError, match="--backend fastokens: found fastokens encodes"):
        run(backend="fastokens")
    summary = run()
    assert summary.backend == "tokenizers"
    assert summary.backend_reason.startswith(f"tokenizers, because fastokens encodes '{text[:5]}")
    documents = [tokens.tolist() for tokens in open_indexed(summary.datasets["text"])]
    assert documents == [tokenizer.encode(text).ids for text in TEXTS]


def test_a_fast_encoder_that_fails_is_not_used(
    run: Convert, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(path: str) -> None:
        raise ValueError("unsupported model")

    monkeypatch.setattr(fastokens.Tokenizer, "from_file", fail, raising=True)
    assert "ValueError: unsupported model" in run().backend_reason
    monkeypatch.setitem(sys.modules, "fastokens", None)
    assert "ModuleNotFoundError" in run(output_prefix=tmp_path / "other").backend_reason


def test_differences_are_described(model: Path) -> None:
    info, reference = load_tokenizer(model, add_special_tokens=True)
    slow = HuggingFaceEncoder(reference, add_special_tokens=True)
    fast = FastokensEncoder(info)
    assert find_difference(fast, slow, encoders.PROBES) is None

    class Forgetful(FastokensEncoder):
        def encode_batch(self, texts: list[str]) -> tuple[Ids, Lengths]:
            return super().encode_batch(texts[:-1])

    found = find_difference(Forgetful(info), slow, ["one", "two"])
    assert found == "fastokens returned 1 results for 2 texts"
