"""The rehearsal's dialogues become SFT datasets with the rehearsal's own chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.rehearsal.tokenizer import END_OF_TEXT, TURN_END
from data_prep.sft.convert import SFTOptions, convert_sft
from data_prep.tokenizer import load_tokenizer
from tests.data_prep.sft_material import read_pairs, trained_texts


@pytest.mark.parametrize("directory", ["tokenizer", "base-init"])
@pytest.mark.parametrize("part", ["dialogue/train", "dialogue/valid", "expert/train"])
def test_dialogues_are_taken_whole(corpus: Path, tmp_path: Path, directory: str, part: str) -> None:
    path = corpus / f"{part}.jsonl"
    model = corpus / directory
    summary = convert_sft(SFTOptions((str(path),), tmp_path / "out", model))
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    report = summary.report
    assert (report.conversations, report.bad_lines, report.dropped) == (len(records), {}, {})
    assert report.end_of_turn == TURN_END
    info, tokenizer = load_tokenizer(model, add_special_tokens=False)
    assert info.eod_token == END_OF_TEXT
    for record, (ids, weights) in zip(records, read_pairs(tmp_path / "out"), strict=True):
        answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
        assert info.eod_id not in ids
        assert trained_texts(ids, weights, tokenizer) == [f"{a}{TURN_END}" for a in answers]
