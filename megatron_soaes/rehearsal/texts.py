"""Invented text in every form that a recipe reads, for files that are not on this machine."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import cycle, islice
from typing import Any

import orjson

from data_prep.rehearsal.dialogues import dialogues
from data_prep.rehearsal.documents import documents
from data_prep.rehearsal.exam import exam_questions
from data_prep.rehearsal.world import World, make_world
from megatron_soaes.recipe.data_settings import Chat, Dataset

SEED = 0
COMPANIES, REGULATIONS = 4, 2
DOCUMENTS = 64
"""About 170 tokens each: a quarter of them fills several windows."""
CONVERSATIONS = 16
ITEMS = 6
"""Questions, texts and prompts of a file."""
TOKENIZER_TEXTS = 300
"""Documents, and as many dialogues, that the stand-in tokenizer learns from."""
CHOICES = 4
SOURCES = ("first", "second")
"""Of conversations, where the recipe tells them by source."""

Row = Mapping[str, Any]


@cache
def _world() -> World:
    return make_world(SEED, COMPANIES, REGULATIONS)


def tokenizer_texts() -> Iterator[str]:
    """What the stand-in tokenizer learns from."""
    for row in islice(documents(_world(), SEED), TOKENIZER_TEXTS):
        yield row["text"]
    for talk in islice(dialogues(SEED), TOKENIZER_TEXTS):
        yield from (turn["content"] for turn in talk["messages"])


def dataset_rows(dataset: Dataset, number: int) -> list[Row]:
    """Records as a dataset's settings describe them; those of another `number` are others."""
    if not dataset.is_chat:
        made = islice(documents(_world(), number), DOCUMENTS)
        return [{dataset.key: row["text"]} for row in made]
    talks = islice(dialogues(number), CONVERSATIONS)
    sources = cycle(SOURCES)
    return [_conversation(talk["messages"], dataset.chat, next(sources)) for talk in talks]


def _conversation(turns: Sequence[Mapping[str, str]], chat: Chat, source: str) -> Row:
    row: dict[str, Any]
    match chat.format:
        case "sharegpt":
            speakers = {"user": "human", "assistant": "gpt"}
            row = {
                "conversations": [
                    {"from": speakers[turn["role"]], "value": turn["content"]} for turn in turns
                ]
            }
        case "alpaca":
            said = [turn["content"] for turn in turns]
            pairs = [list(pair) for pair in zip(said[:-2:2], said[1:-2:2], strict=True)]
            row = {"instruction": said[-2], "output": said[-1], "history": pairs}
        case _:
            row = {"messages": list(turns)}
    if chat.source_key is not None:
        row[chat.source_key] = source
    if chat.weight_key is not None:
        row[chat.weight_key] = 1.0
    return row


def task_rows(kind: str) -> list[Row]:
    """Items of a task file: of `questions`, `choices`, `few_shot` or `texts`."""
    exam = exam_questions(_world())[::7]
    if kind == "questions":
        return list(exam[:ITEMS])
    if kind == "texts":
        return [{"text": row["text"]} for row in islice(documents(_world(), SEED + 1), ITEMS)]
    answers = [str(row["answer"]) for row in exam]
    return [
        {
            "question": row["question"],
            "choices": [answers[(number + shift) % len(answers)] for shift in range(CHOICES)],
            "answer": 0,
        }
        for number, row in enumerate(exam[:ITEMS])
    ]


def prompt_lines(*, is_json: bool) -> list[bytes]:
    """Prompts of a pair of models: a text a line, or objects with texts and conversations."""
    asked = [str(row["question"]) for row in exam_questions(_world())[:ITEMS]]
    if not is_json:
        return [f"{question}\n".encode() for question in asked]
    talks = [{"messages": [{"role": "user", "content": one}]} for one in asked[1::2]]
    return as_lines([*({"prompt": one} for one in asked[::2]), *talks])


def as_lines(rows: Iterable[Row]) -> list[bytes]:
    """Each row as a JSON line."""
    return [orjson.dumps(row) + b"\n" for row in rows]


def encoded(lines: Sequence[bytes], suffix: str) -> bytes:
    """JSON lines as a file of this suffix holds them: plain, compressed, or rows of Parquet."""
    match suffix:
        case ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            out = io.BytesIO()
            pq.write_table(pa.Table.from_pylist([orjson.loads(line) for line in lines]), out)
            return out.getvalue()
        case ".gz":
            return gzip.compress(b"".join(lines), mtime=0)
        case ".zst":
            import zstandard

            return zstandard.ZstdCompressor().compress(b"".join(lines))
    return b"".join(lines)
