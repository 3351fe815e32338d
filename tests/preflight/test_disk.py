"""What a run needs of the disk, stage by stage."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from megatron_soaes.errors import UserError
from megatron_soaes.preflight.disk import check_disk, written
from megatron_soaes.preflight.findings import Unseen
from megatron_soaes.recipe.check import shapes_of
from megatron_soaes.recipe.schema import Recipe
from tests.preflight.conftest import recipe_in

GB = 10**9
EPOCHS = (
    "stages=[{name: store, kind: capture, blend: talk, epochs: 1, sequence_length: 64, "
    "validation: []}]"
)
Usage = namedtuple("Usage", "total used free")


def said(recipe: Recipe) -> tuple[list[str], list[str]]:
    """What is well, and what is wrong."""
    found = list(check_disk(recipe, shapes_of(recipe)[0]))
    assert not any(isinstance(one, Unseen) for one in found)
    return [one for one in found if isinstance(one, str)], [
        str(one) for one in found if not isinstance(one, str)
    ]


def gigabytes(line: str) -> float:
    """Of a line such as "/runs: 9.0 GB free, 1.5 GB wanted"."""
    return float(line.rsplit(", ", maxsplit=1)[-1].split(" GB", maxsplit=1)[0].replace(",", ""))


def test_what_does_not_fit_is_told_with_what_is_not_counted(project: Path) -> None:
    many = recipe_in(project, "cpt.steps=100000000", "cpt.checkpoints={every: 1}")
    well, (wrong,) = said(many)
    assert "GB free; expected" in wrong
    assert not any("wanted" in line for line in well)


def test_what_depends_on_the_data_is_named_beside_the_total(project: Path) -> None:
    well, wrong = said(recipe_in(project, EPOCHS))
    assert wrong == []
    assert "store: depends on the data, not counted" in well
    assert well[-1].endswith("GB without store wanted")


def test_only_what_a_stage_wrote_itself_is_taken_off_its_need(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of an evaluation, or of another recipe's run, make no room for checkpoints."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(0, 0, 10**15))
    large = recipe_in(project, "cpt.steps=100000", "cpt.checkpoints={every: 1}")
    before = gigabytes(said(large)[0][-1])
    for name, size in (("measured", 9 * GB), ("cpt", GB)):
        file = project / "work" / name / "file"
        file.parent.mkdir(parents=True)
        with file.open("wb") as stream:
            stream.truncate(size)
    assert gigabytes(said(large)[0][-1]) == pytest.approx(before - 1, abs=0.11)


def test_tokens_of_compressed_text_are_estimated_from_its_size_unpacked(project: Path) -> None:
    (project / "domain.jsonl").rename(project / "domain.jsonl.zst")
    with (project / "domain.jsonl.zst").open("wb") as stream:
        stream.truncate(GB)
    well, _ = said(recipe_in(project, "data.datasets.domain.text=[domain.jsonl.zst]"))
    line = next(line for line in well if line.startswith("preprocess-domain: "))
    assert line.startswith("preprocess-domain: 1.5 GB (estimated: a token for each 4 bytes")


def test_the_copy_that_lean_answers_come_from_is_counted(project: Path) -> None:
    answers = "stages=[{name: answers, kind: respond, prompts: [chats], backend: BACKEND}]"
    lean, _ = said(recipe_in(project, answers.replace("BACKEND", "lean")))
    megatron, _ = said(recipe_in(project, answers.replace("BACKEND", "megatron")))
    assert next(line for line in lean if line not in megatron).startswith("answers: ")


def test_files_that_vanish_while_they_are_counted_count_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").write_bytes(b"12345")
    (tmp_path / "gone").symlink_to("nowhere")
    names = ["kept", "gone", "removed just now"]
    monkeypatch.setattr("os.walk", lambda folder: [(str(folder), [], names)])
    assert written(tmp_path) == 5 + len("nowhere")


@pytest.mark.parametrize("workdir", ["domain.jsonl", "domain.jsonl/deeper"])
def test_a_file_in_the_place_of_the_workdir_is_found(sound: Path, workdir: str) -> None:
    with pytest.raises(UserError, match=r"domain\.jsonl: found a file; expected a folder"):
        said(recipe_in(sound, f"workdir={workdir}"))
