"""Documents that hold a passage of an evaluation set."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.decontaminate import (
    EvaluationIndex,
    Finding,
    Item,
    find_overlaps,
    read_items,
)
from megatron_soaes.errors import UserError
from tests.data_prep.curation.planted import units, write
from tests.data_prep.curation.test_minhash_shingles import naive_shingles

QUESTION = "下列哪一项不属于国有企业改革三年行动的主要任务？"
ENGLISH = "Which of the following statements about the boiling point of water at sea level is true?"


def find(texts: list[str], index: EvaluationIndex) -> list[Finding]:
    return list(find_overlaps(texts, index))


def test_a_passage_inside_a_long_document_is_found_with_its_item() -> None:
    rng = random.Random(0)
    index = EvaluationIndex([Item("exam.jsonl:1", ENGLISH), Item("exam.jsonl:2", QUESTION)])
    around = write("zh", units("zh", 400, rng), rng)
    texts = [around, around + "。" + QUESTION + around, ENGLISH.upper(), "short"]
    found = find(texts, index)
    assert [(finding.document, finding.item) for finding in found] == [
        (1, "exam.jsonl:2"),
        (2, "exam.jsonl:1"),
    ]
    assert found[0].shared == len(naive_shingles(QUESTION, 13))
    assert found[0].overlap == found[0].shared / len(naive_shingles(texts[1], 13))
    assert found[1].overlap == 1.0


@given(
    texts=st.lists(st.text("abc ", max_size=40), max_size=6),
    items=st.lists(st.text("abc ", max_size=20), min_size=1, max_size=4),
)
def test_findings_are_those_of_python_sets(texts: list[str], items: list[str]) -> None:
    index = EvaluationIndex([Item(str(i), item) for i, item in enumerate(items)], units=2)
    known = {run for item in items for run in naive_shingles(item, 2) if len(run) == 2}
    expected = {}
    for number, text in enumerate(texts):
        runs = naive_shingles(text, 2)
        shared = sum(run in known for run in runs)
        if shared:
            expected[number] = (shared, shared / len(runs))
    found = find(texts, index)
    assert {f.document: (f.shared, f.overlap) for f in found} == expected


def test_items_too_short_to_look_for_are_listed() -> None:
    index = EvaluationIndex([Item("a:1", "太短"), Item("a:2", QUESTION)])
    assert index.too_short == ["a:1"]
    assert find(["太短"], index) == []


def test_only_short_items_find_nothing() -> None:
    assert find([QUESTION, ENGLISH], EvaluationIndex([Item("a:1", "太短")])) == []


def test_items_are_read_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "exam.jsonl"
    file.write_text(json.dumps({"prompt": "问", "answer": "答", "id": 3}) + "\n\n", "utf-8")
    assert read_items([file]) == [Item(f"{file}:1", "问\n答")]
    assert read_items([file], ("prompt",)) == [Item(f"{file}:1", "问")]


@pytest.mark.parametrize(
    ("line", "found"),
    [('{"prompt": "a"}', "no key 'answer'"), ("[1]", "a JSON array"), ("{", "invalid JSON")],
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, line: str, found: str) -> None:
    file = tmp_path / "exam.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n", "utf-8")
    with pytest.raises(UserError, match=rf"exam\.jsonl:2: found {found}"):
        read_items([file])


def test_no_items_are_refused() -> None:
    with pytest.raises(UserError, match="at least one"):
        EvaluationIndex([])
