"""Recipes that distil a draft: a sound one, and what each of their rules refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.graph import blends_of, nodes, start_of
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.problems import RecipeErrors
from megatron_soaes.recipe.schema import DistillStage, Recipe

from .recipe_files import RECIPE, write_recipe

DATA = """\
    chat: {conversations: [chat/train.jsonl]}
    chat_valid: {conversations: [chat/valid.jsonl]}
    answers: {responses: respond, holdout: 0.1}
"""
BLENDS = """\
    own-words: {weights: {answers: 1.0}, replay: {weights: {chat: 1.0}, share: 0.1}}
"""
STAGES = """\
  - {name: hf, kind: export}
  - name: respond
    kind: respond
    prompts: [chat, domain]
    prompts_per_dataset: 100
    sampling: {max_new_tokens: 32, temperatures: [0.0, 1.0]}
  - name: capture
    kind: capture
    blend: own-words
    epochs: 1
    sequence_length: 128
    validation: [answers, chat_valid]
    store: {entries: 16}
  - name: distil
    kind: distill
    captured: capture
    epochs: 2
    sequence_length: 128
    global_batch_size: 8
    validation: {sets: [answers], best: answers}
    gates: ["validation.answers.alpha >= 0.5"]
  - name: sharpen
    kind: distill
    teacher: cpt
    blend: own-words
    steps: 10
    sequence_length: 128
    global_batch_size: 8
    objective:
      divergence: jensen_shannon
      beta: 0.3
      selection: {reference: distil@best, share: 0.4}
    validation: {sets: [chat_valid]}
  - {name: draft-hf, kind: export, model: draft}
  - name: pair
    kind: speculate
    target: hf
    draft: draft-hf
    prompts: prompts.jsonl
"""


def write(folder: Path) -> Path:
    text = RECIPE.replace("  blends:\n", DATA + "  blends:\n").replace(
        "stages:\n", BLENDS + "stages:\n", 1
    )
    return write_recipe(folder, text.replace("evaluation:", STAGES + "evaluation:"))


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    return write(tmp_path)


def stage_named(recipe: Recipe, name: str) -> DistillStage:
    (found,) = (stage for stage in recipe.stages if stage.name == name)
    assert isinstance(found, DistillStage)
    return found


def test_a_distilled_pair_is_a_sound_recipe(pair: Path) -> None:
    recipe = load_recipe(pair)
    check(recipe)
    assert "preprocess-answers" not in nodes(recipe), "its respond stage makes it"
    distil = stage_named(recipe, "distil")
    assert distil.model == "draft"
    assert start_of(recipe, distil) == "draft-cpt"
    assert start_of(recipe, stage_named(recipe, "sharpen")) == "distil"
    # A captured stage trains on what its capture read.
    assert blends_of(recipe, distil) == [recipe.data.blends["own-words"]]


BROKEN = {
    "data.datasets.answers.responses=nobody": "a respond stage above",
    "data.datasets.answers.key=body": "none without `text`",
    "respond.prompts=[chat,chatt]": "'chatt'",
    "respond.prompts=[answers]": "a respond stage above 'respond'",
    "respond.sampling.temperatures=[0.0,0.0]": "each name once",
    "respond.backend=endpoint": "a value with endpoint",
    "respond.url=http://localhost:8000": "nothing with megatron",
    "respond.layout.context_parallel=2": "text is written in a plain layout",
    "capture.samples=10": "exactly one of them",
    "capture.epochs=null": "exactly one of them",
    "capture.blend=mix": "conversations, which have passes",
    "capture.store.entries=251": "at most 250",
    "capture.store.exponent=0.5": "nothing with top_k",
    "capture.validation=[chat]": "a dataset held out from training",
    "capture.sequence_length=64": "64, that of 'capture'",
    "capture.store.kind=sampled,distil.objective.divergence=reverse_kl": "forward_kl, of which",
    "capture.store.temperature=2": "2, that of 'capture'",
    "distil.captured=null": "exactly one of them",
    "distil.teacher=cpt": "exactly one of them",
    "distil.captured=respond": "a capture stage above it",
    "distil.blend=own-words": "nothing with `captured`",
    "distil.model=target": "draft: the target is the teacher",
    "distil.steps=4": "exactly one of them",
    "distil.objective.beta=0.1": "nothing without jensen_shannon",
    "distil.validation.sets=[unseen],distil.validation.best=null,distil.gates=[]": (
        "a set of the validation of 'capture'"
    ),
    "distil.gates=[acceptance.then.answers.alpha > 0]": "before or after the training",
    "distil.gates=[acceptance.after.unseen.alpha > 0]": "a set of the stage's validation.sets",
    "sharpen.gates=[acceptance > 0],sharpen.validation.sets=[]": "a held-out set to measure it on",
    "sharpen.blend=null": "a blend with `teacher`",
    "sharpen.teacher=draft-cpt": "import or one of cpt",
    "sharpen.teacher=cpt@best": "a stage with a best checkpoint",
    "sharpen.layout.pipeline_parallel=2": "the teacher runs whole beside the student",
    "sharpen.layout.tensor_parallel=16": "a divisor of the attention heads, 8",
    "sharpen.objective.selection.reference=cpt": "import or one of draft-cpt, distil",
    "pair.draft=hf": "an export stage of the draft above it",
    "pair.after=cpt": "nothing: it reads two exports in one process",
    "pair.draft_lengths=[3,3]": "each name once",
}


@pytest.mark.parametrize("overrides", BROKEN)
def test_what_does_not_fit_together_is_refused(pair: Path, overrides: str) -> None:
    with pytest.raises(RecipeErrors) as caught:
        check(load_recipe(pair, _split(overrides)))
    assert any(BROKEN[overrides] in str(problem) for problem in caught.value.problems), str(
        caught.value
    )


def _split(overrides: str) -> list[str]:
    """`a=1,b=[2,3]` as two overrides."""
    parts: list[str] = []
    for part in overrides.split(","):
        if "=" in part or not parts:
            parts.append(part)
        else:
            parts[-1] += f",{part}"
    return parts
