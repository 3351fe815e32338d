from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from data_prep.rehearsal.retention import (
    CHOICE_TOKENS,
    CHOICES,
    CONTEXT_TOKENS,
    TEXT_CHARACTERS,
    cloze_items,
    likelihood_texts,
)
from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.tasks import Choice, read_choices, read_questions, read_texts


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Tokenizer:
    return Tokenizer.from_file(str(corpus / "tokenizer" / "tokenizer.json"))


@pytest.fixture(scope="module")
def held_out(corpus: Path) -> list[str]:
    lines = (corpus / "general/valid.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def cloze(corpus: Path) -> tuple[Choice, ...]:
    return read_choices(corpus / "general/cloze.jsonl").items


@pytest.mark.parametrize("directory", ["tokenizer", "base-init"])
def test_tokens_of_context_and_choice_are_theirs_one_after_the_other(
    corpus: Path, cloze: tuple[Choice, ...], directory: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(corpus / directory)
    for item in cloze:
        context = tokenizer(item.context).input_ids
        assert len(context) == CONTEXT_TOKENS
        for choice in item.choices:
            alone = tokenizer(choice).input_ids
            assert len(alone) == CHOICE_TOKENS
            assert tokenizer(item.context + choice).input_ids == context + alone


def test_one_choice_goes_on_in_the_document_and_the_others_come_from_three_more(
    cloze: tuple[Choice, ...], held_out: list[str]
) -> None:
    for item in cloze:
        sources = [next(i for i, text in enumerate(held_out) if c in text) for c in item.choices]
        assert len(set(sources)) == CHOICES == len(item.choices)
        goes_on = [any(item.context + c in text for text in held_out) for c in item.choices]
        assert goes_on == [i == item.answer for i in range(CHOICES)]


def test_the_right_choice_stands_everywhere(cloze: tuple[Choice, ...]) -> None:
    assert {item.answer for item in cloze} == set(range(CHOICES))


def test_contexts_do_not_overlap(cloze: tuple[Choice, ...]) -> None:
    contexts = [item.context for item in cloze]
    assert not [a for i, a in enumerate(contexts) for b in contexts[:i] if a in b or b in a]


def test_a_seed_decides_the_items(tokenizer: Tokenizer, held_out: list[str]) -> None:
    assert cloze_items(held_out, tokenizer, 10, seed=1) == cloze_items(held_out, tokenizer, 10, 1)
    assert cloze_items(held_out, tokenizer, 10, seed=1) != cloze_items(held_out, tokenizer, 10, 2)
    assert likelihood_texts(held_out, 4, seed=1) != likelihood_texts(held_out, 4, seed=2)


def test_texts_are_cut_to_a_length(corpus: Path) -> None:
    texts = [item.text for item in read_texts(corpus / "general/bytes.jsonl").items]
    assert max(map(len, texts)) <= TEXT_CHARACTERS
    assert len(set(texts)) == len(texts)


def test_little_text_gives_fewer_items(tokenizer: Tokenizer, held_out: list[str]) -> None:
    assert 12 < len(cloze_items(held_out, tokenizer, 10_000, seed=0)) < 10_000
    assert len(likelihood_texts(held_out, 10_000, seed=0)) == len(held_out)


def test_too_few_documents_for_wrong_choices_are_refused(
    tokenizer: Tokenizer, held_out: list[str]
) -> None:
    with pytest.raises(UserError, match="at least 4"):
        cloze_items([max(held_out, key=len)], tokenizer, 1, seed=0)


def test_documents_to_go_on_with_are_held_out_ones_cut_in_two(corpus: Path) -> None:
    lines = (corpus / "domain/valid.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line)["text"] for line in lines]
    items = read_questions(corpus / "domain/continuation.jsonl").items
    assert 0 < len(items) <= len(documents)
    for item in items:
        assert item.prompt and item.answer
        assert any(text.startswith(item.prompt + item.answer) for text in documents)
