"""Held-out text as tasks: what a model may forget (a cloze, texts for their bits), and documents
of the domain to go on with.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from megatron_soaes.errors import UserError

CONTEXT_TOKENS = 64
CHOICE_TOKENS = 16
CHOICES = 4
TEXT_CHARACTERS = 1500
SHOWN_TOKENS = 40
"""Of a document that is to be continued: enough to name the company."""
WRITTEN_TOKENS = 48


@dataclass(frozen=True)
class _Passage:
    """A context and how it goes on, both whole tokens; the continuation starts with a word."""

    document: int
    context: str
    continuation: str


def cloze_items(
    texts: Iterable[str], tokenizer: Tokenizer, count: int, seed: int
) -> list[dict[str, Any]]:
    """At most `count` items `{"id", "context", "choices", "answer"}`: which of four texts goes on?

    The context has 64 tokens and each choice 16. The three wrong choices continue other contexts of
    other documents, so right and wrong ones are texts of one kind. Every choice starts with a blank
    and a word, where no token crosses, so the tokens of context and choice together are theirs one
    after the other. Items share no text but choices. Little text gives fewer items; raises
    UserError for less than four texts with a passage.
    """
    passages = [p for i, text in enumerate(texts) for p in _passages(i, text, tokenizer)]
    documents = len({passage.document for passage in passages})
    if documents < CHOICES:
        raise UserError(
            "general_megabytes",
            f"{documents} held-out documents that are long enough for a cloze",
            f"at least {CHOICES}",
            "Raise it.",
        )
    rng = random.Random(f"cloze {seed}")
    return [
        _item(number, passage, passages, rng)
        for number, passage in enumerate(rng.sample(passages, min(count, len(passages))), 1)
    ]


def _passages(document: int, text: str, tokenizer: Tokenizer) -> Iterator[_Passage]:
    """Passages of a text, one after the other."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    starts = [start for start, _ in encoding.offsets] + [len(text)]
    begin = 0
    while begin + CONTEXT_TOKENS + CHOICE_TOKENS <= len(encoding.ids):
        middle = begin + CONTEXT_TOKENS
        end = middle + CHOICE_TOKENS
        context = text[starts[begin] : starts[middle]]
        continuation = text[starts[middle] : starts[end]]
        parts = ((context, begin, middle), (continuation, middle, end))
        if _starts_word(context, continuation) and all(
            tokenizer.encode(part, add_special_tokens=False).ids == encoding.ids[first:last]
            for part, first, last in parts
        ):
            yield _Passage(document, context, continuation)
            begin = end
        else:
            begin += 1


def _starts_word(context: str, continuation: str) -> bool:
    return continuation[0] == " " and continuation[1:2].isalpha() and not context[-1:].isspace()


def _item(
    number: int, passage: _Passage, passages: Sequence[_Passage], rng: random.Random
) -> dict[str, Any]:
    wrong: list[_Passage] = []
    while len(wrong) < CHOICES - 1:
        other = rng.choice(passages)
        if other.document not in {passage.document, *(w.document for w in wrong)}:
            wrong.append(other)
    answer = rng.randrange(CHOICES)
    choices = [other.continuation for other in wrong]
    choices.insert(answer, passage.continuation)
    return {"id": number, "context": passage.context, "choices": choices, "answer": answer}


def likelihood_texts(texts: Sequence[str], count: int, seed: int) -> list[dict[str, str]]:
    """At most `count` of the texts, `{"text"}`, each cut to 1500 characters."""
    chosen = random.Random(f"bytes {seed}").sample(texts, min(count, len(texts)))
    return [{"text": text[:TEXT_CHARACTERS]} for text in chosen]


def continuations(texts: Iterable[str], tokenizer: Tokenizer) -> list[dict[str, str]]:
    """`{"prompt", "answer"}` of each text that is long enough: 40 tokens, then the next 48."""
    rows = []
    for text in texts:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) < SHOWN_TOKENS + WRITTEN_TOKENS:
            continue
        middle = encoding.offsets[SHOWN_TOKENS][0]
        end = encoding.offsets[SHOWN_TOKENS + WRITTEN_TOKENS - 1][1]
        rows.append({"prompt": text[:middle], "answer": text[middle:end]})
    return rows
