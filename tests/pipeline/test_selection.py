"""Running a part of a recipe, running it anew, and saying what would be run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_soaes.cli import app
from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.pipeline.lock import only_run_in, only_run_of
from megatron_soaes.pipeline.manifest import read_manifest
from megatron_soaes.pipeline.run import run
from megatron_soaes.pipeline.selection import Selection
from megatron_soaes.recipe.load import load_recipe

RECIPE = """
version: 1
name: parts
workdir: work
models: {target: {source: model}}
data: {datasets: {one: {text: [one.jsonl]}, two: {text: [two.jsonl]}}}
stages:
  - {name: hf, kind: export}
"""
ONE, TWO, IMPORT, EXPORT = "preprocess-one", "preprocess-two", "import-target", "hf"


@pytest.fixture
def recipe(tmp_path: Path, source: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n", "utf-8")
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def done(recipe: Path) -> list[str]:
    names = (ONE, TWO, IMPORT, EXPORT)
    return [name for name in names if read_manifest(recipe.parent / "work" / name)]


def soaes_run(recipe: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["run", str(recipe), *options], catch_exceptions=False)
    assert result.exit_code == ExitCode.OK
    return result.output


def test_a_dry_run_says_what_would_run_and_touches_nothing(recipe: Path) -> None:
    said = soaes_run(recipe, "--dry-run")
    assert f"{ONE}: would run\n" in said
    assert f"{EXPORT}: would run with what comes of {IMPORT}\n" in said
    assert not (recipe.parent / "work").exists()


def test_a_run_ends_with_the_stage_that_is_asked_for_and_begins_there_later(recipe: Path) -> None:
    soaes_run(recipe, "--to", TWO)
    assert done(recipe) == [ONE, TWO]
    said = soaes_run(recipe, "--dry-run")
    assert f"{TWO}: unchanged, would be skipped\n" in said
    assert f"{IMPORT}: would run\n" in said
    said = soaes_run(recipe, "--from", IMPORT)
    assert done(recipe) == [ONE, TWO, IMPORT, EXPORT]
    assert ONE not in said.split("done: all results")[0]


def test_what_comes_before_must_be_done_and_unchanged(recipe: Path) -> None:
    run(load_recipe(recipe), Selection(last=ONE))
    with pytest.raises(UserError, match=f"{TWO}, which comes before: found it is not finished"):
        run(load_recipe(recipe), Selection(first=IMPORT))
    (recipe.parent / "one.jsonl").write_text(json.dumps({"text": "other"}) + "\n", "utf-8")
    with pytest.raises(UserError, match=r"changed inputs: .*/one\.jsonl.*--from preprocess-one"):
        run(load_recipe(recipe), Selection(first=TWO))


def test_a_forced_stage_starts_anew_and_what_reads_it_follows(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(load_recipe(recipe))
    first = read_manifest(recipe.parent / "work" / IMPORT)
    capsys.readouterr()
    run(load_recipe(recipe), Selection(first=TWO, forced=(IMPORT,)))
    second = read_manifest(recipe.parent / "work" / IMPORT)
    assert first is not None and second is not None
    assert second.started > first.started
    said = capsys.readouterr().out
    assert f"{IMPORT}: runs again (forced); the earlier results are kept in" in said
    assert f"{TWO}: unchanged, skipped" in said
    assert f"{EXPORT}: runs again (changed inputs: " in said


def test_a_forced_stage_forgets_how_far_it_was(recipe: Path) -> None:
    run(load_recipe(recipe), Selection(last=ONE))
    folder = recipe.parent / "work" / ONE
    (folder / "manifest.json").unlink()
    (recipe.parent / "one.jsonl").write_text(json.dumps({"text": "other"}) + "\n", "utf-8")
    with pytest.raises(UserError, match=f"other inputs.*--force {ONE}"):
        run(load_recipe(recipe), Selection(last=ONE))
    assert run(load_recipe(recipe), Selection(last=ONE, forced=(ONE,))) == ExitCode.OK


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(first="import-targt"), r"--from: found 'import-targt'.*'import-target'"),
        (Selection(last="x"), "--to: found 'x'"),
        (Selection(forced=("x",)), "--force: found 'x'"),
        (Selection(first=TWO, last=ONE), "--to preprocess-one: found it before preprocess-two"),
        (Selection(first=TWO, forced=(ONE,)), "--force preprocess-one: found it outside"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(
    recipe: Path, selection: Selection, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(load_recipe(recipe), selection)
    assert not (recipe.parent / "work").exists()


def test_one_stage_alone_needs_what_it_reads_and_nothing_else(recipe: Path) -> None:
    with pytest.raises(UserError, match=f"stage {IMPORT}, which comes before"):
        run(load_recipe(recipe), Selection(only=EXPORT))
    soaes_run(recipe, "--only", IMPORT)
    soaes_run(recipe, "--only", EXPORT)
    assert done(recipe) == [IMPORT, EXPORT]


def test_stages_run_beside_each_other_but_not_beside_a_whole_run(recipe: Path) -> None:
    work = recipe.parent / "work"
    with only_run_in(work, beside_others=True):
        soaes_run(recipe, "--only", ONE)
        with pytest.raises(UserError, match="another run at work"):
            run(load_recipe(recipe))
    with only_run_of(work, TWO), pytest.raises(UserError, match=f"stage {TWO} in .*another run"):
        run(load_recipe(recipe), Selection(only=TWO))


def test_a_stage_alone_is_no_range(recipe: Path) -> None:
    with pytest.raises(UserError, match="--only hf: found --from or --to beside it"):
        run(load_recipe(recipe), Selection(only=EXPORT, last=EXPORT))
    with pytest.raises(UserError, match=f"--force {ONE}: found --only hf"):
        run(load_recipe(recipe), Selection(only=EXPORT, forced=(ONE,)))
