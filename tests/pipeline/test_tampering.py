"""What was altered behind a run's back is noticed and named, and nothing is built on it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_soaes.accelerator.launch import launch
from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.pipeline.manifest import read_manifest
from megatron_soaes.pipeline.run import run
from megatron_soaes.pipeline.selection import ALL_STAGES, Selection
from megatron_soaes.recipe.load import load_recipe
from tests.checkpoint.tiny import Case, make_model
from tests.data_prep.conftest import save_tokenizer, train_tokenizer

RECIPE = """
version: 1
name: tampered
workdir: work
models: {target: {source: model}}
data:
  datasets: {mine: {text: ["text/*.jsonl"]}}
  blends: {mix: {weights: {mine: 1}}}
stages:
  - name: cpt
    kind: cpt
    blend: mix
    steps: 1
    sequence_length: 32
    global_batch_size: 1
    precision: {dtype: fp32}
  - {name: hf, kind: export}
"""
ONLY_THE_LAST = Selection(first="hf")


class Launches:
    """In place of real processes: remembers which stages were started, and fails."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def __call__(self, module: str, arguments: Sequence[str], processes: int, logs: Path) -> int:
        self.stages.append(arguments[1])
        return ExitCode.FAILURE


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and all its stages run but the last; tests leave it as it is."""
    root = tmp_path_factory.mktemp("tampering")
    model = make_model(root / "model", Case(vocab_size=400, layers=2))
    save_tokenizer(model, train_tokenizer())
    (root / "text").mkdir()
    write_text(root, "the quick brown fox")
    (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert run(load_recipe(root / "recipe.yaml"), Selection(last="cpt")) == ExitCode.OK
    shutil.copytree(root, root / "untouched")
    return root


@pytest.fixture
def root(finished: Path) -> Path:
    """The same folder, with everything in it as the run has left it."""
    for name in ("work", "text"):
        shutil.rmtree(finished / name)
        shutil.copytree(finished / "untouched" / name, finished / name)
    return finished


def write_text(root: Path, text: str) -> None:
    lines = (json.dumps({"text": f"{text}, {number}"}) + "\n" for number in range(40))
    (root / "text/a.jsonl").write_text("".join(lines), encoding="utf-8")


def cut_in_half(file: Path) -> Path:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return file


def shard_of(root: Path) -> Path:
    return root / "work/cpt/checkpoints/iter_0000001/__0_0.distcp"


def started(root: Path, selection: Selection = ALL_STAGES) -> list[str]:
    """The stages that a run starts before it ends."""
    launches = Launches()
    run(load_recipe(root / "recipe.yaml"), selection, launcher=launches)
    return launches.stages


def refused(root: Path, selection: Selection, match: str) -> list[str]:
    """The stages that a run starts before it raises a UserError that matches."""
    launches = Launches()
    with pytest.raises(UserError, match=match):
        run(load_recipe(root / "recipe.yaml"), selection, launcher=launches)
    return launches.stages


def test_without_tampering_only_the_last_stage_is_left(root: Path) -> None:
    assert started(root) == ["hf"]


def test_an_input_that_changed_under_an_unfinished_stage_stops_the_run(root: Path) -> None:
    (root / "work/preprocess-mine/manifest.json").unlink()
    write_text(root, "another text")

    match = r"stage preprocess-mine: found other inputs than it was begun with \(.*/text/a\.jsonl\)"
    assert refused(root, ALL_STAGES, match) == []


def test_an_input_that_changed_under_a_finished_stage_is_named_and_its_stage_is_first(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(root, "another text")

    assert (
        refused(root, ONLY_THE_LAST, r"preprocess-mine.*: found changed inputs: .*/a\.jsonl") == []
    )
    assert started(root) == ["preprocess-mine"]
    assert f"runs again (changed inputs: {root}/text/a.jsonl)" in capsys.readouterr().out


def test_changed_weights_of_the_base_are_imported_again_before_anything_reads_them(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = root / "model/model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert refused(root, ONLY_THE_LAST, "import-target.*: found changed inputs: .*/model") == []
        assert started(root) == ["import-target"]
    finally:
        weights.write_bytes(content)
    assert f"runs again (changed inputs: {root}/model)" in capsys.readouterr().out


@pytest.mark.parametrize("selection", [ONLY_THE_LAST, Selection(only="hf")])
def test_a_truncated_shard_is_named_and_what_reads_it_is_not_started(
    root: Path, selection: Selection
) -> None:
    shard = cut_in_half(shard_of(root))

    match = f"stage cpt.*: found missing or altered output: {re.escape(str(shard))}"
    assert refused(root, selection, match) == []


@pytest.mark.parametrize("selection", [ALL_STAGES, ONLY_THE_LAST, Selection(only="hf")])
def test_a_flipped_bit_in_a_shard_of_the_same_size_is_refused_by_what_reads_it(
    root: Path, selection: Selection
) -> None:
    shard = shard_of(root)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)

    match = f"stage hf, input .*: found {re.escape(str(shard.parent.parent))} altered since"
    assert refused(root, selection, match) == []


def test_a_truncated_shard_is_made_again_before_anything_reads_it(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = cut_in_half(shard_of(root))

    assert started(root) == ["cpt"]
    out = capsys.readouterr().out
    assert f"cpt: runs again (missing or altered output: {shard})" in out
    assert "the earlier results are kept in" in out


def test_a_shard_that_is_truncated_as_the_next_stage_starts_ends_that_stage(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def tampering(module: str, arguments: Sequence[str], processes: int, logs: Path) -> int:
        for shard in shard_of(root).parent.glob("*.distcp"):
            cut_in_half(shard)
        return launch(module, arguments, processes, logs)

    code = run(load_recipe(root / "recipe.yaml"), ONLY_THE_LAST, launcher=tampering)
    assert code == ExitCode.BAD_INPUT
    assert f"error: {shard_of(root).parent}: " in capfd.readouterr().err
    assert read_manifest(root / "work/hf") is None
    assert not (root / "work/hf/hf").exists()


@pytest.mark.parametrize("stage", ["preprocess-mine", "import-target", "cpt"])
@pytest.mark.parametrize("content", ["", '{"format_version": 1, "stage": ', "[]", '"a text"'])
def test_a_corrupt_manifest_is_named_and_nothing_is_started(
    root: Path, stage: str, content: str
) -> None:
    manifest = root / f"work/{stage}/manifest.json"
    manifest.write_text(content, encoding="utf-8")

    match = f"{re.escape(str(manifest))}: found a damaged manifest"
    for selection in (ALL_STAGES, ONLY_THE_LAST):
        assert refused(root, selection, match) == []
