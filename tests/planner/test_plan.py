"""The plan of a whole recipe, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from megatron_soaes.errors import UserError
from megatron_soaes.planner.plan import RecipePlan, StagePlan, plan_recipe, problems
from megatron_soaes.planner.search import GIB, search_layouts
from megatron_soaes.planner.table import (
    disk_table,
    layout_words,
    layouts_table,
    memory_table,
    time_table,
    why_not_table,
)
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import Cluster, Recipe
from megatron_soaes.recipe.training_settings import Checkpointing, Layout
from tests.planner.shapes import QWEN2_7B, workload

EXAMPLE = Path("examples/soaes_v2_72b/recipe.yaml")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(EXAMPLE)


def planned(recipe: Recipe, **wanted: Any) -> RecipePlan:
    cluster = recipe.cluster
    assert cluster is not None
    return plan_recipe(recipe, check(recipe), cluster, **wanted)


def changed(recipe: Recipe, stage: str, **fields: Any) -> Recipe:
    stages = [one.model_copy(update=fields) if one.name == stage else one for one in recipe.stages]
    return recipe.model_copy(update={"stages": stages})


def stage_of(plan: RecipePlan, name: str) -> StagePlan:
    return next(stage for stage in plan.stages if stage.name == name)


def text_of(table: Table) -> str:
    console = Console(width=250)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_published_case_fits_64_h100s(recipe: Recipe) -> None:
    plan = planned(recipe)
    assert problems(plan) == []
    assert all(stage.fits for stage in plan.stages)
    assert [stage.name for stage in plan.stages] == [
        "cpt", "sft-broad", "sft-narrow", "draft-cpt", "draft-sft-broad", "draft-sft-narrow",
        "respond", "capture", "distil", "evaluation",
    ]  # fmt: skip


def test_the_length_of_a_stage_with_steps_is_known(recipe: Recipe) -> None:
    cpt = stage_of(planned(recipe), "cpt")
    assert cpt.step is not None
    assert cpt.duration is not None
    assert cpt.duration.tokens == 8000 * 512 * 8192
    # It saves beside training.
    assert cpt.duration.days == pytest.approx(8000 * cpt.step.total / 86400)
    assert cpt.duration.gpu_hours == pytest.approx(cpt.duration.days * 24 * 64)


def test_saves_that_training_waits_for_are_counted(recipe: Recipe) -> None:
    beside = stage_of(planned(recipe), "cpt")
    checkpoints = Checkpointing(every=250)
    waited = stage_of(planned(changed(recipe, "cpt", checkpoints=checkpoints)), "cpt")
    assert beside.duration is not None
    assert waited.duration is not None
    assert waited.save_seconds is not None
    extra = waited.duration.seconds - beside.duration.seconds
    assert extra == pytest.approx(8000 / 250 * waited.save_seconds)


def test_a_faster_disk_saves_faster(recipe: Recipe) -> None:
    slow, fast = (stage_of(planned(recipe, disk_gb_s=rate), "cpt") for rate in (5, 50))
    assert slow.checkpoint == fast.checkpoint
    assert slow.save_seconds == pytest.approx(10 * (fast.save_seconds or 0))


def test_epochs_depend_on_the_data_unless_its_amount_is_said(recipe: Recipe) -> None:
    open_ended = stage_of(planned(recipe), "sft-broad")
    assert open_ended.duration is None
    assert open_ended.remark == "Its steps depend on the data."
    told = stage_of(planned(recipe, samples={"sft-broad": 1000}), "sft-broad")
    assert told.duration is not None
    assert told.duration.steps == 8


def test_a_capture_says_what_its_store_takes(recipe: Recipe) -> None:
    assert stage_of(planned(recipe), "capture").store is None
    told = stage_of(planned(recipe, samples={"capture": 10_000}), "capture")
    # 64 more samples are held out; 32 entries of an id and a half-precision number, and the rest.
    assert told.store == (10_000 + 64) * 4096 * (32 * 6 + 4)
    assert told.duration is not None
    assert told.duration.steps == 10_064 // 8


def test_stages_that_generate_have_memory_and_no_time(recipe: Recipe) -> None:
    respond = stage_of(planned(recipe), "respond")
    assert respond.step is None
    # Keys and values of 80 layers, one KV head of 128 numbers in bf16: 40 KiB a token.
    assert respond.remark == (
        "Counted for 1 sample of 544 tokens. The cache of 64 texts takes 2.5 GiB more for every "
        "1,024 tokens of the longest, prompt and answer."
    )
    assert respond.memory[0].weights > 16 * GIB
    assert respond.memory[0].optimizer == 0


def test_an_evaluation_is_counted_with_all_windows_of_a_pass(recipe: Recipe) -> None:
    one = stage_of(planned(recipe), "evaluation").memory[0]
    judging = recipe.evaluation.model_copy(
        update={"micro_batch_size": 4, "questions": {}, "choices": {}}
    )
    four = stage_of(planned(recipe.model_copy(update={"evaluation": judging})), "evaluation")
    assert four.memory[0].logits > 2 * one.logits
    assert four.remark == "Counted for 4 samples of 8,192 tokens."


def test_a_server_elsewhere_is_not_planned(recipe: Recipe) -> None:
    served = changed(recipe, "respond", backend="endpoint", url="http://node:8000/v1",
                     served_model="target", layout=Layout())  # fmt: skip
    assert "respond" not in [stage.name for stage in planned(served).stages]


def test_what_does_not_fit_is_named_with_stage_and_rank(recipe: Recipe) -> None:
    """Four-way tensor parallelism and a last pipeline stage that has twice its share."""
    layout = Layout(
        tensor_parallel=4, sequence_parallel=True, pipeline_parallel=8, data_parallel=2,
        first_stage_layers=5, last_stage_layers=33,
    )  # fmt: skip
    plan = planned(changed(recipe, "sft-narrow", layout=layout))
    (problem,) = problems(plan)
    assert problem.path == "stage sft-narrow, rank 56 (pipeline stage 7)"
    found, _, parts = problem.value.partition(": ")
    assert found.endswith(" of 79 GiB")
    assert float(found.split()[0]) > 79
    # What is named adds up to what is needed.
    named = sum(float(part.rpartition(" ")[2]) for part in parts.split(", "))
    assert named == pytest.approx(float(found.split()[0]), abs=0.5)
    assert parts.startswith("weights ")
    assert problem.fix.endswith("more GPUs: --layouts sft-narrow says which layouts fit.")


@pytest.mark.parametrize("stage", ["respond", "evaluation"])
def test_what_only_reads_is_told_to_cut_the_model(recipe: Recipe, stage: str) -> None:
    """A ranking of layouts is for stages that train or capture."""
    (problem,) = problems(planned(changed(recipe, stage, layout=Layout(data_parallel=8))))
    assert problem.path == f"stage {stage}, rank 0 (pipeline stage 0)"
    assert problem.fix.startswith("Raise tensor_parallel of its layout")


def test_recomputation_is_offered_where_it_is_enough(recipe: Recipe) -> None:
    plan = planned(changed(recipe, "sft-broad", micro_batch_size=2))
    found = problems(plan)
    assert found[0].path == "stage sft-broad, rank 0 (pipeline stage 0)"
    assert "activations" in found[0].value
    assert found[0].fix.startswith("Try recompute.granularity selective of mlp: it needs ")


def test_a_gpu_without_figures_is_refused(recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"cluster\.gpu: found 'h100'"):
        plan_recipe(recipe, check(recipe), Cluster(gpu="h100"))


def test_amounts_are_for_stages_that_exist(recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"samples of 'sft-brod'.*Did you mean 'sft-broad'"):
        planned(recipe, samples={"sft-brod": 1})


def test_an_amount_is_refused_where_the_recipe_says_the_steps(recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"samples of 'cpt': found no such stage.*through epochs"):
        planned(recipe, samples={"cpt": 100})


def test_tables_tell_every_stage(recipe: Recipe) -> None:
    plan = planned(recipe)
    memory, time, disk = (text_of(one(plan)) for one in (memory_table, time_table, disk_table))
    assert all(stage.name in memory and stage.name in disk for stage in plan.stages)
    assert "TP 8, SP, PP 4, DP 2" in memory
    assert "8,000" in time
    assert "by the data" in time
    assert "Its steps depend on the data." in disk


def test_rankings_tell_the_fastest_and_the_reasons() -> None:
    asked = workload(QWEN2_7B, sequence_length=8192, global_batch_size=64)
    found = search_layouts(asked, 8, "a100-40g", 8)
    fastest, reasons = text_of(layouts_table(found, most=2)), text_of(why_not_table(found))
    running = [one for one in found if one.step]
    assert f"The fastest of {len(running)} layouts that fit, of {len(found)}" in fastest
    assert layout_words(running[0].layout) in fastest
    assert "does not fit: " in reasons
    assert "of 39 GiB at pipeline stage 0" in reasons
