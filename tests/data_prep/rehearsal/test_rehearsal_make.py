from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.rehearsal.__main__ import main
from data_prep.rehearsal.make import Options, Summary, make, text_of
from megatron_soaes.errors import UserError
from megatron_soaes.files import sha256_file


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files_of(directory: Path) -> dict[str, str]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): sha256_file(path) for path in paths}


def test_the_directory_holds_every_part(corpus: Path, summary: Summary) -> None:
    names = {path.name for path in corpus.iterdir()}
    assert names == {
        *(
            "general",
            "domain",
            "genre",
            "dialogue",
            "expert",
            "tokenizer",
            "base-init",
            "draft-init",
        ),
        *("exam.jsonl", "prompts.jsonl", "world.json", "summary.json"),
    }
    assert not list(corpus.rglob(".*"))
    for name, part in summary.parts.items():
        rows = read_jsonl(corpus / name)
        assert len(rows) == part.records > 0
        assert sum(len(text_of(row)) for row in rows) == part.characters
        assert 1 < part.bytes_per_token < 12


def test_the_sizes_are_those_asked_for(summary: Summary) -> None:
    parts = summary.parts
    general = parts["general/train.jsonl"].bytes + parts["general/valid.jsonl"].bytes
    assert 300_000 <= general < 310_000
    assert 30_000 <= parts["domain/train.jsonl"].tokens < 30_500
    assert 20_000 <= parts["genre/train.jsonl"].tokens < 20_500
    assert parts["domain/valid.jsonl"].records == 30
    assert parts["general/cloze.jsonl"].records == 12
    assert parts["general/bytes.jsonl"].records == 4
    assert parts["dialogue/train.jsonl"].records == 150
    assert parts["expert/train.jsonl"].records == 5 * (3 * 4 + 1 * 3)


def test_the_general_text_is_accounted_for(summary: Summary) -> None:
    parts = summary.parts
    characters = sum(parts[f"general/{side}.jsonl"].characters for side in ("train", "valid"))
    assert sum(summary.general_characters_by_package.values()) == characters
    assert summary.general_dropped["code"] > 0


def test_the_same_seed_gives_the_same_bytes(corpus: Path, summary: Summary, tmp_path: Path) -> None:
    again = make(tmp_path / "again", summary.seed, summary.options, workers=1)
    assert again == summary
    assert files_of(tmp_path / "again") == files_of(corpus)


def test_another_seed_gives_another_corpus(corpus: Path, summary: Summary, tmp_path: Path) -> None:
    other = make(tmp_path / "other", summary.seed + 1, summary.options, workers=1)
    same = {name for name, digest in other.files.items() if summary.files[name] == digest}
    assert {"general/train.jsonl", "general/valid.jsonl"} <= same
    changed = ("world.json", "domain/train.jsonl", "dialogue/train.jsonl", "exam.jsonl")
    for name in (*changed, "prompts.jsonl"):
        assert name not in same


def test_documents_of_other_companies_change_nothing_else(
    corpus: Path, summary: Summary, tmp_path: Path
) -> None:
    options = replace(summary.options, genre_tokens=0)
    without = make(tmp_path / "without", summary.seed, options, workers=1)
    assert summary.files.keys() - without.files.keys() == {"genre/train.jsonl"}
    assert without.files.items() <= summary.files.items()


def test_general_dialogues_do_not_name_the_world(corpus: Path) -> None:
    world = json.loads((corpus / "world.json").read_text(encoding="utf-8"))
    names = [entity["name"] for entity in world["companies"] + world["regulations"]]
    for row in read_jsonl(corpus / "dialogue/train.jsonl"):
        assert not [name for name in names if name in text_of(row)]


def test_an_equal_corpus_is_reused(corpus: Path, summary: Summary) -> None:
    before = (corpus / "summary.json").stat().st_mtime_ns
    assert make(corpus, summary.seed, summary.options) == summary
    assert (corpus / "summary.json").stat().st_mtime_ns == before


def test_another_corpus_is_never_overwritten(corpus: Path, summary: Summary) -> None:
    before = files_of(corpus)
    with pytest.raises(UserError, match="another seed, options or version"):
        make(corpus, summary.seed, replace(summary.options, dialogues=151))
    assert files_of(corpus) == before


def test_a_damaged_or_foreign_directory_is_refused(
    corpus: Path, summary: Summary, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(corpus, damaged)
    with (damaged / "exam.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("{}\n")
    with pytest.raises(UserError, match=r"exam\.jsonl: found a changed file"):
        make(damaged, summary.seed, summary.options)
    (damaged / "summary.json").unlink()
    with pytest.raises(UserError, match=r"something without summary\.json"):
        make(damaged, summary.seed, summary.options)


@pytest.mark.parametrize("change", [{"dialogues": 0}, {"questions_per_fact": 14}])
def test_impossible_options_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        Options(**change)


def test_nothing_is_left_behind_by_a_failure(tmp_path: Path, summary: Summary) -> None:
    impossible = replace(summary.options, vocab_size=100_000)
    with pytest.raises(UserError, match="vocab_size"):
        make(tmp_path / "corpus", 0, impossible, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_parts_and_where_they_are(
    corpus: Path, summary: Summary, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        f"--{name.replace('_', '-')}": str(getattr(summary.options, name))
        for name in Options.__dataclass_fields__
    }
    flat = [word for pair in options.items() for word in pair]
    assert main([str(corpus), "--seed", str(summary.seed), *flat]) == 0
    printed = capsys.readouterr().out
    assert "domain/train.jsonl" in printed
    assert str(corpus / "summary.json") in printed


def test_the_command_explains_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "Remove" in capsys.readouterr().err
