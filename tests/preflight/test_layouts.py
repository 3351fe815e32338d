"""Every model that a job builds on several processes is built beforehand, once for all alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_soaes.errors import UserError
from megatron_soaes.preflight.layouts import buildings, look_at_layouts
from megatron_soaes.preflight.ranks import Built, check_built
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.training_settings import Layout
from tests.models.shapes import SHAPE
from tests.preflight.conftest import recipe_in

DISTIL = """stages=[
  {name: sft, kind: sft, blend: talk, steps: 4, sequence_length: 64, global_batch_size: 16},
  {name: answers, kind: respond, prompts: [chats], layout: {tensor_parallel: 8}},
  {name: served, kind: respond, prompts: [chats], backend: endpoint, url: 'http://gpu1:8000',
   served_model: soaes},
  {name: lean, kind: respond, prompts: [chats], backend: lean},
  {name: distil, kind: distill, teacher: sft, blend: talk, steps: 4, sequence_length: 64,
   global_batch_size: 16, layout: {tensor_parallel: 4, data_parallel: 4}},
  {name: measured, kind: evaluate, checkpoints: [sft], dtype: bf16,
   layout: {tensor_parallel: 8}}]"""


def test_every_model_that_is_cut_over_processes_is_built(sound: Path) -> None:
    recipe = recipe_in(sound, DISTIL.replace("\n", " "))
    shapes = check(recipe)
    built = {one.whose: one.options.layout for one in buildings(recipe, shapes)}
    student = Layout(tensor_parallel=4, data_parallel=4)
    assert built == {
        "sft": recipe.models.target.layout,
        "answers": Layout(tensor_parallel=8),
        "distil": student,
        "the teacher of distil": student,
        "measured": Layout(tensor_parallel=8),
    }


def test_stages_that_build_alike_share_their_ranks_and_others_are_named(sound: Path) -> None:
    recipe = recipe_in(sound, DISTIL.replace("\n", " "))
    found = list(look_at_layouts(recipe, check(recipe)))
    assert [one.subject for one in found if one.well] == [
        "ranks of sft",
        "ranks of answers, measured",
        "ranks of distil, the teacher of distil",
    ]
    assert not any(one.wrong for one in found)
    assert [what for one in found for what in one.unseen] == [
        "the model of the stage served, which is behind http://gpu1:8000",
        "the model of the stage lean, which is whole on one device",
    ]


def test_a_tensor_that_no_rank_has_is_wrong() -> None:
    found = list(check_built(Built(), SHAPE, SHAPE.vocab_size))
    assert found
    assert all(isinstance(one, UserError) and one.found == "no such tensor" for one in found)


def test_a_layout_that_cannot_be_built_is_a_finding(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defective(*arguments: object) -> Built:
        raise AssertionError("heads")

    monkeypatch.setattr("megatron_soaes.preflight.layouts.build_ranks", defective)
    recipe = recipe_in(sound)
    found = [one for one in look_at_layouts(recipe, check(recipe)) if one.wrong]
    assert [one.subject for one in found] == [
        "ranks of cpt, sft",
        "ranks of draft-cpt",
        "ranks of measured",
    ]
