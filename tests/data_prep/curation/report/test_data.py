"""What is no output of a finished curation is refused, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.curation.report.page import NUMBERS, PAGE, write_report
from megatron_soaes.errors import UserError
from tests.data_prep.curation.report.outcomes import clusters, curated, outcome


def test_a_folder_without_an_outcome_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no outcome\.json"):
        write_report(tmp_path)
    unfinished = curated(tmp_path)
    (unfinished / "outcome.json").unlink()
    with pytest.raises(UserError, match="has not ended"):
        write_report(unfinished)
    assert not (unfinished / PAGE).exists()


def damaged(change: str) -> dict[str, Any]:
    """The outcome with one thing wrong."""
    content = outcome()
    first, second = (one["account"] for one in content["blocks"][:2])
    if change == "a block is missing":
        del content["blocks"][1]
    elif change == "a document is lost":
        second["kept"]["site00"][0] -= 1
    elif change == "a tally has three numbers":
        first["read"]["gazette"].append(1)
    elif change == "a sample has no text":
        del second["samples"]["top_ngram"][0]["text"]
    elif change == "a histogram is short":
        content["blocks"][-1]["account"]["scores"]["credibility"].pop()
    elif change == "a length is a word":
        first["lengths"]["long"] = 1
    elif change == "the blend is of others":
        content["tokens"]["third"] = 1
    elif change == "no blocks":
        content["blocks"] = []
    else:
        content = {"results": {}}
    return content


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("a block is missing", "copies did not read what read kept"),
        ("a document is lost", "1 documents in, 0 kept and 0 dropped"),
        ("a tally has three numbers", "not documents and characters"),
        ("a sample has no text", "a sample without id, source and text"),
        ("a histogram is short", "scores in other than 20 steps"),
        ("a length is a word", "a length that is no number"),
        ("the blend is of others", "tokens of other corpora"),
        ("no blocks", "at least 1 item"),
        ("another program's", "Field required"),
    ],
)
def test_a_foreign_or_damaged_outcome_is_refused(tmp_path: Path, change: str, found: str) -> None:
    folder = curated(tmp_path, damaged(change))
    with pytest.raises(UserError, match=r"outcome\.json") as error:
        write_report(folder)
    assert found in error.value.found
    assert not (folder / PAGE).exists()
    assert not (folder / NUMBERS).exists()


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = curated(tmp_path)
    (folder / "outcome.json").write_bytes(b'{"blocks": [')
    with pytest.raises(UserError, match="no JSON"):
        write_report(folder)


def test_clusters_must_be_those_of_the_outcome(tmp_path: Path) -> None:
    folder = curated(tmp_path)
    file = folder / "near-copies.jsonl"
    file.write_text(json.dumps(clusters()[0]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"1 documents removed.*14"):
        write_report(folder)
    file.write_text('{"size": 2}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"near-copies\.jsonl:1"):
        write_report(folder)
    file.unlink()
    with pytest.raises(UserError, match="no such file"):
        write_report(folder)
