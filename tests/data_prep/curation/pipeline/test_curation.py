"""Whole curations of small corpora: what is kept, what goes and why, stopped and started."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zstandard
from typer.testing import CliRunner
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_prep.curation.pipeline.documents import read_shard
from data_prep.curation.selection.relevance import save_model
from data_prep.curation.selection.training import TrainingSettings, train
from data_prep.indexed import open_indexed
from megatron_soaes.cli import app
from megatron_soaes.errors import ExitCode, UserError
from tests.data_prep.curation.pipeline.corpora import RECIPE, corpus, prose, write_lines
from tests.data_prep.curation.planted import contents

SELECTION = Path(__file__).parents[4] / "examples/selection"


def curate(folder: Path, recipe: str, *options: str) -> dict[str, Any]:
    """Run the command on a recipe in `folder`; returns the outcome."""
    (folder / "curation.yaml").write_text(recipe, encoding="utf-8")
    arguments = ["prep", "curate", str(folder / "curation.yaml"), *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    outcome: dict[str, Any] = json.loads((folder / "out/outcome.json").read_text("utf-8"))
    return outcome


def results(folder: Path) -> dict[str, bytes]:
    """What must not depend on how the work was cut up in time, nor on where it was done."""
    kept = ("documents", "accounts", "outcome.json", "near-copies.jsonl")
    files = {}
    for name, data in contents(folder / "out").items():
        if name.startswith(kept):
            packed = name.endswith(".zst")
            plain = (
                zstandard.ZstdDecompressor().decompressobj().decompress(data) if packed else data
            )
            files[name] = plain.replace(str(folder).encode(), b"FOLDER")
    outcome = json.loads(files["outcome.json"])
    del outcome["identity"]
    return files | {"outcome.json": json.dumps(outcome).encode()}


def dropped(folder: Path) -> dict[str, str]:
    """Why each document went, by id, from the lists of all blocks."""
    reasons = {}
    for file in (folder / "out/accounts").rglob("*.dropped.jsonl.zst"):
        with zstandard.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                assert row["id"] not in reasons
                reasons[row["id"]] = row["reason"]
    return reasons


def documents(folder: Path) -> dict[str, Any]:
    """All documents that are left, by id."""
    files = sorted((folder / "out/documents").glob("*.jsonl.zst"))
    return {document.id: document for file in files for document in read_shard(file)}


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A curated corpus and its ledger."""
    folder = tmp_path_factory.mktemp("curated")
    fate = corpus(folder)
    curate(folder, RECIPE)
    return folder, fate


def test_planted_documents_go_for_their_reason_and_no_other_goes(
    curated: tuple[Path, dict[str, str]],
) -> None:
    folder, fate = curated
    assert dropped(folder) == fate


def test_every_document_is_left_or_dropped(curated: tuple[Path, dict[str, str]]) -> None:
    folder, fate = curated
    left = documents(folder)
    read = 120 + 60 + len(fate)
    assert not left.keys() & fate.keys()
    assert len(left) + len(fate) == read
    blocks = json.loads((folder / "out/outcome.json").read_text("utf-8"))["blocks"]
    assert [block["name"] for block in blocks] == [
        "read", "clean", "copies", "evaluation", "near-copies",
    ]  # fmt: skip
    assert sum(n for n, _ in blocks[0]["account"]["read"].values()) == read
    assert sum(n for n, _ in blocks[-1]["account"]["kept"].values()) == len(left)


def test_documents_know_where_they_come_from(curated: tuple[Path, dict[str, str]]) -> None:
    left = documents(curated[0])
    assert left["n1"].metadata == {
        "cluster_size": 1, "corpus": "news", "language": "zh", "source": "site1",
    }  # fmt: skip
    assert left["n0"].metadata["language"] == "en"
    assert left["n0"].metadata["cluster_size"] == 2
    assert left["r3"].metadata["source"] == "reports"


def test_personal_data_is_masked_and_counted(curated: tuple[Path, dict[str, str]]) -> None:
    folder, _ = curated
    text = documents(folder)["n5"].text
    assert "13812345678" not in text
    assert "zhang.san" not in text
    blocks = json.loads((folder / "out/outcome.json").read_text("utf-8"))["blocks"]
    assert blocks[1]["account"]["masked"] == {"site1": {"EMAIL": 1, "PHONE": 1}}


def test_its_report_is_written_and_balances(curated: tuple[Path, dict[str, str]]) -> None:
    folder, _ = curated
    result = CliRunner().invoke(app, ["prep", "report", str(folder / "out")])
    assert result.exit_code == ExitCode.OK
    assert "near_copy" in (folder / "out/report.html").read_text("utf-8")
    assert json.loads((folder / "out/report.json").read_text("utf-8"))


def test_a_dropped_near_copy_names_the_document_that_stays(
    curated: tuple[Path, dict[str, str]],
) -> None:
    lines = (curated[0] / "out/near-copies.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 10
    assert all(json.loads(line)["size"] == 2 for line in lines)


def test_workers_and_a_second_start_change_nothing(
    curated: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    corpus(tmp_path)
    for _ in range(2):
        curate(tmp_path, RECIPE, "--workers", "2")
        assert results(tmp_path) == results(curated[0])


@pytest.mark.parametrize(
    ("seed", "sent", "code"),
    [(1, signal.SIGKILL, -9), (2, signal.SIGKILL, -9), (3, signal.SIGTERM, ExitCode.STOPPED)],
)
def test_a_stopped_curation_goes_on_to_the_same_output(
    curated: tuple[Path, dict[str, str]], tmp_path: Path, seed: int, sent: int, code: int
) -> None:
    corpus(tmp_path)
    (tmp_path / "curation.yaml").write_text(RECIPE, encoding="utf-8")
    command = [sys.executable, "-m", "megatron_soaes.cli", "prep", "curate", "curation.yaml"]
    process = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])},
    )  # fmt: skip
    marks = tmp_path / "out/logs"
    wanted = random.Random(seed).randrange(1, 12)
    while process.poll() is None and len(list(marks.glob("*/completions/*"))) < wanted:
        time.sleep(0.01)
    os.killpg(process.pid, sent)
    assert process.wait() == code
    assert not (tmp_path / "out/outcome.json").exists()
    curate(tmp_path, RECIPE)
    assert results(tmp_path) == results(curated[0])


def test_what_is_left_becomes_a_dataset_and_a_blend(tmp_path: Path, model: Path) -> None:
    corpus(tmp_path, 60)
    tokenize = f"tokenize: {{tokenizer: {model}}}\nwrite: parquet\n"
    outcome = curate(tmp_path, RECIPE + tokenize)
    news, reports = (open_indexed(Path(dataset["prefix"])) for dataset in outcome["blend"])
    files = sorted((tmp_path / "out/documents").glob("news-*.parquet"))
    assert len(news) == sum(pq.read_table(file).num_rows for file in files)
    assert outcome["tokens"] == {"news": len(news.tokens), "reports": len(reports.tokens)}
    weights = {dataset["name"]: dataset["weight"] for dataset in outcome["blend"]}
    assert weights["reports"] / weights["news"] == pytest.approx(
        2 * len(reports.tokens) / len(news.tokens)
    )


def test_text_files_are_a_document_each(tmp_path: Path) -> None:
    rng = random.Random(1)
    for name in ("b.txt", "a.md"):
        (tmp_path / name).write_text("\ufeff" + prose(rng), encoding="utf-8")
    curate(tmp_path, "output: out\ncorpora: {notes: {input: ['*.txt', '*.md']}}\n")
    assert sorted(Path(name).name for name in documents(tmp_path)) == ["a.md", "b.txt"]


def scoring(folder: Path) -> str:
    """Files of scores in `folder`, and the section of a recipe that names them."""
    for name in ("sources", "authorities"):
        shutil.copy(SELECTION / f"{name}.yaml", folder)
    save_model(train(SELECTION / "seeds.jsonl", TrainingSettings())[0], folder / "model.json")
    files = "sources: sources.yaml, authorities: authorities.yaml, model: model.json"
    return f"scores: {{{files}, as_of: 2026-01-01%s}}\n"


def test_documents_are_scored_and_chosen_without_cleaning_them_again(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [
        {"id": "official", "text": prose(rng), "url": "https://assets.minguo.example/1"},
        {"id": "chat", "text": prose(rng), "source": "somebody"},
    ]
    write_lines(tmp_path / "raw.jsonl", rows)
    recipe = "output: out\ncorpora: {raw: {input: [raw.jsonl]}}\n" + scoring(tmp_path)
    curate(tmp_path, recipe % "")
    scores = {name: d.metadata["scores"]["credibility"] for name, d in documents(tmp_path).items()}
    assert scores["official"] > 0.5 > scores["chat"]
    cleaned = (tmp_path / "out/logs/clean/completions/00000").stat().st_mtime_ns
    for keep, left in (("credibility>=0.5", {"official"}), ("credibility>=0.1", set(scores))):
        outcome = curate(tmp_path, recipe % f", keep: {keep}")
        assert documents(tmp_path).keys() == left
        assert outcome["blocks"][-1]["name"] == "selection"
    assert (tmp_path / "out/logs/clean/completions/00000").stat().st_mtime_ns == cleaned
    assert "selection" not in [block["name"] for block in curate(tmp_path, recipe % "")["blocks"]]


def page(text: str) -> str:
    """A page with its text between a menu and a footer."""
    paragraphs = "".join(f"<p>{line}</p>" for line in text.replace("。", "。\n").split("\n"))
    menu = "<nav><a href='/'>首页</a> <a href='/a'>关于我们</a></nav>"
    return f"<html><body>{menu}<article>{paragraphs}</article><footer>版权</footer></body></html>"


def test_pages_and_archives_give_their_main_text(tmp_path: Path) -> None:
    rng = random.Random(1)
    texts = [prose(rng) for _ in range(3)]
    (tmp_path / "a.html").write_text(page(texts[0]), encoding="utf-8")
    (tmp_path / "b.html").write_text("<html><body></body></html>", encoding="utf-8")
    with (tmp_path / "crawl.warc.gz").open("wb") as stream:
        writer = WARCWriter(stream, gzip=True)
        for number, text in enumerate(texts[1:]):
            writer.write_record(
                writer.create_warc_record(
                    f"http://news.example.cn/{number}", "response",
                    payload=BytesIO(page(text).encode()),
                    http_headers=StatusAndHeaders("200 OK", [("Content-Type", "text/html")]),
                )
            )  # fmt: skip
    outcome = curate(tmp_path, "output: out\ncorpora: {web: {input: ['*.html', '*.warc.gz']}}\n")
    left = list(documents(tmp_path).values())
    assert sorted(document.text.replace("\n", "") for document in left) == sorted(texts)
    assert {document.metadata["source"] for document in left} == {"web", "news.example.cn"}
    assert outcome["blocks"][0]["account"]["skipped"] == {"no_text_in_page": 1}


def test_bad_lines_stop_the_run_by_name_or_are_counted(tmp_path: Path) -> None:
    rows = [{"text": prose(random.Random(1))}, "", "{", '{"text": 5}', '{"id": 3}']
    write_lines(tmp_path / "raw.jsonl", rows)
    recipe = "output: out\ncorpora: {raw: {input: [raw.jsonl]}}\n"
    with pytest.raises(UserError, match=r"raw\.jsonl:3: found invalid JSON"):
        curate(tmp_path, recipe)
    shutil.rmtree(tmp_path / "out")
    outcome = curate(tmp_path, recipe + "bad_lines: skip\n")
    assert outcome["blocks"][0]["account"]["skipped"] == {
        "blank": 1, "invalid_json": 1, "not_a_string": 1, "missing_key": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("quality_zh: {min_charcters: 3}\n", r"quality_zh\.min_charcters"),
        ("near_copies: {min_jaccard: 2.0}\n", r"near_copies\.min_jaccard: 2\.0"),
        ("slurm: {partition: 'a; rm'}\n", r"slurm\.partition"),
        ("tokenise: {}\n", "tokenise"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: str, found: str) -> None:
    with pytest.raises(UserError, match=found):
        curate(tmp_path, RECIPE + change)
    assert not (tmp_path / "out").exists()


def test_a_file_in_two_corpora_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match="which corpus one has as well"):
        curate(tmp_path, "output: out\ncorpora: {one: {input: [a.jsonl]}, two: {input: ['*']}}\n")


def test_the_output_of_another_recipe_is_not_mixed_with_this_one(tmp_path: Path) -> None:
    write_lines(tmp_path / "raw.jsonl", [{"text": prose(random.Random(1))}])
    recipe = "output: out\ncorpora: {raw: {input: [raw.jsonl]}}\n"
    curate(tmp_path, recipe)
    with pytest.raises(UserError, match="recipe: personal_data"):
        curate(tmp_path, recipe + "personal_data: null\n")
    with pytest.raises(UserError, match=r"others \(inputs"):
        (tmp_path / "raw.jsonl").write_text('{"text": "b"}\n', encoding="utf-8")
        curate(tmp_path, recipe)


def test_a_lost_account_is_noticed(tmp_path: Path) -> None:
    write_lines(tmp_path / "raw.jsonl", [{"text": prose(random.Random(1))}])
    recipe = "output: out\ncorpora: {raw: {input: [raw.jsonl]}}\n"
    curate(tmp_path, recipe)
    (tmp_path / "out/accounts/clean/00000.json").unlink()
    for mark in (tmp_path / "out/logs/outcome/completions").iterdir():
        mark.unlink()
    with pytest.raises(UserError, match=r"clean/00000\.json: found no account"):
        curate(tmp_path, recipe)


def test_the_command_says_what_was_found(curated: tuple[Path, dict[str, str]]) -> None:
    folder, _ = curated
    result = CliRunner().invoke(app, ["prep", "curate", str(folder / "curation.yaml")])
    assert result.exit_code == ExitCode.OK
    assert "evaluation: 191 documents in, 190 kept" in result.output
    assert "10 dropped: near_copy" in result.output
