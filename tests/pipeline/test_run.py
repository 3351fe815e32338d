"""Skipping, going on, running again and refusing, on the quickest stage: tokenization."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.pipeline.decision import BEGUN_FILE
from megatron_soaes.pipeline.gates import flat_metrics
from megatron_soaes.pipeline.hashing import HashCache
from megatron_soaes.pipeline.manifest import read_manifest
from megatron_soaes.pipeline.run import run
from megatron_soaes.pipeline.selection import Selection
from megatron_soaes.recipe.load import load_recipe

RECIPE = """
version: 1
name: tokens
workdir: work
models: {target: {source: model}}
data: {datasets: {mine: {text: ["text/*.jsonl"]}}}
"""


@pytest.fixture
def recipe(tmp_path: Path, source: Path) -> Path:
    (tmp_path / "text").mkdir()
    write_text(tmp_path, "a.jsonl", ["the quick brown fox", "中央企业深化改革"])
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def write_text(root: Path, name: str, texts: list[str]) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (root / "text" / name).write_text(lines, encoding="utf-8")


def stage_folder(recipe: Path) -> Path:
    return recipe.parent / "work/preprocess-mine"


def test_a_finished_stage_has_a_manifest_and_is_skipped(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(load_recipe(recipe)) == ExitCode.OK
    manifest = read_manifest(stage_folder(recipe))
    assert manifest is not None
    assert manifest.metrics["documents"] == 2
    assert set(manifest.outputs) == {"mine.bin", "mine.idx"}
    assert run(load_recipe(recipe)) == ExitCode.OK
    assert "preprocess-mine: unchanged, skipped" in capsys.readouterr().out


def test_the_report_grows_with_every_stage_and_ends_no_run(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = recipe.parent / "work/report.html"
    page.mkdir(parents=True)
    assert run(load_recipe(recipe)) == ExitCode.OK
    assert "report.html was not written: " in capsys.readouterr().out
    page.rmdir()
    run(load_recipe(recipe), Selection(forced=("preprocess-mine",)))
    assert "preprocess-mine" in page.read_text(encoding="utf-8")


def test_changed_text_runs_the_stage_again_and_says_why(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(load_recipe(recipe))
    write_text(recipe.parent, "b.jsonl", ["jumps over the lazy dog"])
    assert run(load_recipe(recipe)) == ExitCode.OK
    added = recipe.parent / "text/b.jsonl"
    assert f"runs again (changed inputs: {added})" in capsys.readouterr().out
    manifest = read_manifest(stage_folder(recipe))
    assert manifest is not None
    assert manifest.metrics["documents"] == 3
    assert len(list((recipe.parent / "work/superseded").iterdir())) == 1


def test_a_truncated_output_is_noticed_and_made_again(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(load_recipe(recipe))
    tokens = stage_folder(recipe) / "mine_text_document.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    assert run(load_recipe(recipe)) == ExitCode.OK
    assert f"missing or altered output: {tokens}" in capsys.readouterr().out


def test_a_damaged_manifest_is_named(recipe: Path) -> None:
    run(load_recipe(recipe))
    (stage_folder(recipe) / "manifest.json").write_text('{"format_version": 1}')
    with pytest.raises(UserError, match=r"manifest\.json: found a damaged manifest"):
        run(load_recipe(recipe))


def test_inputs_may_not_change_under_an_unfinished_stage(recipe: Path) -> None:
    run(load_recipe(recipe))
    (stage_folder(recipe) / "manifest.json").unlink()
    write_text(recipe.parent, "a.jsonl", ["other text"])
    with pytest.raises(
        UserError, match=r"other inputs than it was begun with \(.*/text/a\.jsonl\)"
    ):
        run(load_recipe(recipe))


@pytest.mark.parametrize("damaged", ['{"a', "1"])
def test_a_damaged_record_of_an_unfinished_stage_is_named(recipe: Path, damaged: str) -> None:
    run(load_recipe(recipe))
    (stage_folder(recipe) / "manifest.json").unlink()
    (stage_folder(recipe) / BEGUN_FILE).write_text(damaged, encoding="utf-8")
    with pytest.raises(UserError, match=r"begun\.json: .*--force preprocess-mine"):
        run(load_recipe(recipe))
    assert run(load_recipe(recipe), Selection(forced=("preprocess-mine",))) == ExitCode.OK


def test_an_unfinished_stage_goes_on(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(load_recipe(recipe))
    (stage_folder(recipe) / "manifest.json").unlink()
    assert (stage_folder(recipe) / BEGUN_FILE).exists()
    assert run(load_recipe(recipe)) == ExitCode.OK
    assert "preprocess-mine: goes on" in capsys.readouterr().out


def test_a_bad_line_stops_the_run_with_its_place(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (recipe.parent / "text/b.jsonl").write_text('{"text": "fine"}\n{"text": null}\n')
    assert run(load_recipe(recipe)) == ExitCode.BAD_INPUT
    captured = capfd.readouterr()
    assert "b.jsonl:2" in captured.err
    assert "preprocess-mine: ended with exit code 2 (bad input)" in captured.out
    assert read_manifest(stage_folder(recipe)) is None


def test_missing_text_is_named_before_anything_runs(recipe: Path) -> None:
    (recipe.parent / "text/a.jsonl").unlink()
    with pytest.raises(UserError, match=r"data\.datasets\.mine\.text: found no file at"):
        run(load_recipe(recipe))


def test_two_runs_in_one_folder_are_refused(recipe: Path) -> None:
    work = recipe.parent / "work"
    work.mkdir()
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run at work"):
            run(load_recipe(recipe))


@pytest.mark.parametrize("workdir", ["file", "file/work"])
def test_a_workdir_that_can_be_no_folder_is_refused(
    recipe: Path, tmp_path: Path, workdir: str
) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    with pytest.raises(UserError, match="found no folder to write to"):
        run(load_recipe(recipe, [f"workdir={tmp_path / workdir}"]))


def test_hashes_are_remembered_by_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("one")
    cache = HashCache(tmp_path / "hashes.json")
    first = cache.of(file)
    cache.save()
    file.write_text("three")
    assert HashCache(tmp_path / "hashes.json").of(file) != first
    folder_hash = cache.of(tmp_path)
    (tmp_path / "new").write_text("")
    assert cache.of(tmp_path) != folder_hash


@pytest.mark.parametrize("damaged", ['{"a', "[]"])
def test_a_damaged_memory_of_hashes_is_no_memory(recipe: Path, damaged: str) -> None:
    run(load_recipe(recipe))
    (recipe.parent / "work/hashes.json").write_text(damaged, encoding="utf-8")
    assert run(load_recipe(recipe)) == ExitCode.OK
    assert "a.jsonl" in (recipe.parent / "work/hashes.json").read_text(encoding="utf-8")


def test_runs_beside_each_other_keep_what_each_has_hashed(tmp_path: Path) -> None:
    caches = [HashCache(tmp_path / "hashes.json") for _ in range(2)]
    for number, cache in enumerate(caches):
        (tmp_path / str(number)).write_text("text")
        cache.of(tmp_path / str(number))
        cache.save()
    known = json.loads((tmp_path / "hashes.json").read_text(encoding="utf-8"))
    assert set(known) == {str(tmp_path / "0"), str(tmp_path / "1")}


def test_flat_metrics_are_dotted_numbers() -> None:
    nested = {"validation": {"domain": {"loss": 2, "note": "text"}}, "steps": 5}
    assert flat_metrics(nested) == {"validation.domain.loss": 2.0, "steps": 5.0}
