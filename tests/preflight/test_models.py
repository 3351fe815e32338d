"""The checkpoints that are there already and that a stage is to load."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_soaes.checkpoint import directory
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.preflight.models import checkpoints_at_hand
from megatron_soaes.preflight.page import page
from tests.checkpoint.tiny import Case, make_model
from tests.data_prep.conftest import save_tokenizer, train_tokenizer
from tests.preflight.conftest import look_at, recipe_in

BEST = ["sft.after=cpt@best", "cpt.validation={sets: [domain], best: domain}"]
HELD_OUT = "data.datasets.domain.holdout=0.5"


@pytest.fixture
def begun(project: Path) -> Path:
    """A run that has imported the model and saved two checkpoints of cpt, the first the best."""
    root = project / "work/cpt/checkpoints"
    import_hf(project / "target", root, verify=False)
    first = directory.iteration_directory(root, 0)
    first.rename(directory.iteration_directory(root, 100))
    directory.mark_best(root, 100)
    other = make_model(project / "other", Case("qwen2", vocab_size=512))
    save_tokenizer(other, train_tokenizer())
    import_hf(other, project / "work/other", verify=False)
    newest = directory.iteration_directory(project / "work/other", 0)
    newest.rename(directory.iteration_directory(root, 200))
    directory.move_pointer(root, 200)
    return project


def test_the_best_checkpoint_is_looked_at_where_a_stage_loads_it(begun: Path) -> None:
    recipe = recipe_in(begun, *BEST, HELD_OUT)
    assert checkpoints_at_hand(recipe) == [("cpt", "target"), ("cpt@best", "target")]
    found = look_at(begun, *BEST, HELD_OUT)
    assert found.wrong == []
    said = page("begun", found)
    assert "checkpoint cpt of the target" in said and "iter_0000200" in said
    assert "checkpoint cpt@best of the target" in said and "iter_0000100" in said


@pytest.mark.parametrize("tracker", [directory.TRACKER, directory.BEST_TRACKER])
def test_a_pointer_to_nothing_is_a_finding(begun: Path, tracker: str) -> None:
    (begun / "work/cpt/checkpoints" / tracker).write_text("abc\n", "utf-8")
    (wrong,) = look_at(begun, *BEST, HELD_OUT).wrong
    assert f"{tracker}: found 'abc'; expected the number of an iter_ folder" in wrong


def test_a_damaged_checkpoint_is_a_finding(begun: Path) -> None:
    (begun / "work/cpt/checkpoints/iter_0000100/.metadata").write_bytes(b"\x80")
    (wrong,) = look_at(begun, *BEST, HELD_OUT).wrong
    assert "iter_0000100/.metadata: found unreadable content" in wrong
