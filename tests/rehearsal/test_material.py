"""Material for a small recipe: the user's first records, or invented ones in the same form."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_prep.prompt_file import read_questions as read_prompts
from data_prep.ranges import find_inputs, plan_ranges
from data_prep.sft.reader import read_records
from data_prep.sft.records import Format, Record, RecordReader
from megatron_soaes.errors import UserError
from megatron_soaes.evaluation import tasks
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.data_settings import Chat, Dataset
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.rehearsal import texts
from megatron_soaes.rehearsal.material import Material
from megatron_soaes.rehearsal.shrink import shrink
from tests.rehearsal.small_recipes import large, write_lines


def laid_out(recipe: Recipe, folder: Path) -> tuple[Recipe, list[str]]:
    shapes = check(recipe)
    material = Material(recipe, shapes, folder)
    return material.lay_out(shrink(recipe, shapes)[0]), material.notes


def records(patterns: list[str]) -> list[Record]:
    ranges = plan_ranges(find_inputs(tuple(patterns)), None, None)
    return [
        record.value for one in ranges for batch in read_records(one) for record in batch.records
    ]


def test_nothing_of_the_recipe_is_here_and_everything_it_reads_is_made(tmp_path: Path) -> None:
    small, notes = laid_out(large(tmp_path), tmp_path / "material")
    (domain,) = small.data.datasets["domain"].text
    assert domain.endswith("*"), "a glob stays a glob"
    assert [Path(name).suffixes for name in glob.glob(domain)] == [[".jsonl", ".zst"]]
    assert all(record["text"] for record in records([domain]))
    talks = records(small.data.datasets["talk"].conversations)
    assert {talk["topic"] for talk in talks} == set(texts.SOURCES)
    assert tasks.read_choices(small.evaluation.choices["suite"]).items
    assert (small.models.target.source / "config.json").is_file()
    assert small.models.target.config is None
    assert sum("invented" in note for note in notes) == 3


def test_the_user_s_own_files_are_taken_in_their_first_records(tmp_path: Path) -> None:
    for part in range(3):
        rows = [{"text": f"{part}.{row} " + "word " * 600} for row in range(40)]
        write_lines(tmp_path / f"corpus/own/{part}.jsonl", rows)
    turns = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]
    long = [turns[0], {"role": "assistant", "content": "so " * 900}]
    talks = [{"messages": long if row % 2 else turns, "topic": f"t{row}"} for row in range(60)]
    write_lines(tmp_path / "corpus/talk.jsonl", talks)
    recipe = large(tmp_path, "domain.text=['corpus/own/*.jsonl']")
    small, notes = laid_out(recipe, tmp_path / "material")
    documents = records(small.data.datasets["domain"].text)
    assert [str(one["text"])[:4] for one in documents[:3]] == ["0.0 ", "0.1 ", "0.2 "]
    assert {str(one["text"])[0] for one in documents} == {"0", "1"}, "of the first two files"
    assert all(len(str(one["text"])) <= 2000 for one in documents)
    found = records(small.data.datasets["talk"].conversations)
    assert [one["topic"] for one in found] == [f"t{2 * row}" for row in range(16)]
    assert any("the first 16 conversations" in note for note in notes)


def test_conversations_that_do_not_fit_are_replaced_by_invented_ones(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a b " * 900}, {"role": "assistant", "content": "so"}]
    write_lines(tmp_path / "corpus/talk.jsonl", [{"messages": turns, "topic": "t"}] * 9)
    _, notes = laid_out(large(tmp_path), tmp_path / "material")
    assert any(note.startswith("data.datasets.talk") and "invented" in note for note in notes)


def test_a_damaged_file_of_the_user_is_told(tmp_path: Path) -> None:
    file = tmp_path / "corpus/domain/a.jsonl.zst"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no zstd")
    with pytest.raises(UserError, match=r"a\.jsonl\.zst"):
        laid_out(large(tmp_path), tmp_path / "material")


def test_laid_out_again_nothing_is_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "material"
    first, _ = laid_out(large(tmp_path), folder)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    second, _ = laid_out(large(tmp_path), folder)
    after = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    assert before == after
    assert first == second


def test_files_that_the_user_no_longer_has_are_no_longer_read(tmp_path: Path) -> None:
    rows = [{"text": "word " * 400} for _ in range(40)]
    old = write_lines(tmp_path / "corpus/own/old.jsonl", rows)
    recipe = large(tmp_path, "domain.text=['corpus/own/*.jsonl']")
    laid_out(recipe, tmp_path / "material")
    old.rename(old.with_name("new.jsonl"))
    small, _ = laid_out(recipe, tmp_path / "material")
    found = glob.glob(small.data.datasets["domain"].text[0])
    assert [Path(name).name for name in found] == ["new.jsonl"]


@pytest.mark.parametrize("kind", ["messages", "sharegpt", "alpaca"])
def test_invented_conversations_have_the_form_that_the_recipe_names(kind: Format) -> None:
    chat = Chat(format=kind, source_key="topic", weight_key="w")
    dataset = Dataset(conversations=["x.jsonl"], chat=chat)
    reader = RecordReader(kind, None, "w", "topic", "x", tool_role=False)
    read = [reader.read(dict(row)) for row in texts.dataset_rows(dataset, 0)]
    assert {one.source for one in read} == set(texts.SOURCES)
    assert all(one.trained("all") for one in read)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".parquet"])
def test_invented_text_is_read_in_every_format(tmp_path: Path, suffix: str) -> None:
    rows = texts.dataset_rows(Dataset(text=["x"], key="body"), 0)
    file = tmp_path / f"x{suffix or '.jsonl'}"
    file.write_bytes(texts.encoded(texts.as_lines(rows), suffix))
    assert [one["body"] for one in records([str(file)])] == [row["body"] for row in rows]


def test_invented_tasks_and_prompts_are_read(tmp_path: Path) -> None:
    readers: dict[str, Callable[[Path], tasks.Task[Any]]] = {
        "questions": tasks.read_questions,
        "choices": tasks.read_choices,
        "few_shot": tasks.read_choices,
        "texts": tasks.read_texts,
    }
    for kind, read in readers.items():
        file = tmp_path / f"{kind}.jsonl"
        file.write_bytes(b"".join(texts.as_lines(texts.task_rows(kind))))
        assert len(read(file).items) == texts.ITEMS
    for name in ("prompts.jsonl", "prompts.txt"):
        file = tmp_path / name
        file.write_bytes(b"".join(texts.prompt_lines(is_json=name.endswith(".jsonl"))))
        assert len(read_prompts(file)) == texts.ITEMS
    first = orjson.loads(texts.prompt_lines(is_json=True)[0])
    assert set(first) == {"prompt"}
