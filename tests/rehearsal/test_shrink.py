"""A recipe in small: less of everything, and still every stage, schedule and rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from megatron_soaes.recipe.check import check, shapes_of
from megatron_soaes.recipe.check_arithmetic import check_arithmetic
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import Recipe, TrainingStage
from megatron_soaes.recipe.training_settings import Layout, Schedule
from megatron_soaes.rehearsal.changes import grouped
from megatron_soaes.rehearsal.shrink import shrink, small_layers
from tests.rehearsal.small_recipes import RECIPE, large, write_large


def shrunk(recipe: Recipe) -> Recipe:
    return shrink(recipe, check(recipe))[0]


def training(recipe: Recipe, name: str) -> TrainingStage:
    stage = next(one for one in recipe.stages if one.name == name)
    assert isinstance(stage, TrainingStage)
    return stage


def test_amounts_become_small_and_everything_that_repeats_still_happens(tmp_path: Path) -> None:
    small = shrunk(large(tmp_path))
    cpt = training(small, "cpt")
    assert [one.name for one in small.stages] == ["cpt", "sft", "evaluation", "hf"]
    assert getattr(cpt, "steps", None) == 4
    assert cpt.checkpoints.every == cpt.validation.every == 2
    assert cpt.checkpoints.asynchronous
    assert cpt.checkpoints.keep_last == 1, "so that one is deleted"
    schedule = cpt.schedule
    assert (schedule.shape, schedule.warmup_steps, schedule.decay_steps) == ("wsd", 1, 1)
    assert small.models.target.layout.processes == 4
    assert small.models.target.layout.sequence_parallel
    assert cpt.global_batch_size == 4, "two replicas, and more than one micro-batch of each"
    assert small.data.datasets["domain"].holdout == 0.25


def test_what_needs_a_gpu_or_a_cluster_is_taken_out_and_told(tmp_path: Path) -> None:
    recipe = large(tmp_path)
    small, changes = shrink(recipe, check(recipe))
    cpt = training(small, "cpt")
    assert small.cluster is None
    assert cpt.precision.fp8 is None
    assert cpt.precision.dtype == "bf16"
    assert cpt.optimizer.precision_aware is None
    told = {(field, used): where for (field, _, used), where in grouped(changes.made).items()}
    assert told["precision.fp8", "none"] == ["stages.cpt"]
    assert told["optimizer.precision_aware", "none"] == ["stages.cpt"]
    assert told["cluster", "none"] == ["recipe"]
    assert told["steps", "4"] == ["stages.cpt"]
    assert told["log_every", "1"] == ["stages.cpt", "stages.sft"]


def test_gates_are_measured_but_no_toy_has_to_hold_them(tmp_path: Path) -> None:
    small = shrunk(large(tmp_path))
    assert training(small, "cpt").gates == ["validation.domain.loss <= 1e+300"]
    evaluation = next(one for one in small.stages if one.name == "evaluation")
    assert evaluation.gates == [], "an untrained base has no ability to retain"


def test_what_was_not_written_stays_unwritten(tmp_path: Path) -> None:
    small = shrunk(large(tmp_path))
    sft = training(small, "sft")
    assert "optimizer" not in sft.model_fields_set
    assert "precision" not in sft.model_fields_set
    assert "after" not in sft.model_fields_set


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    texts = {shrunk(large(tmp_path)).model_dump_json(exclude_unset=True) for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("cpt.global_batch_size=4", 2),
        ("cpt.global_batch_size=8", 4),
        ("cpt.micro_batch_size=8", 8),
    ],
    ids=["one micro-batch", "two micro-batches", "micro-batches of several"],
)
def test_the_batch_is_the_least_that_keeps_micro_batches_in_kind(
    tmp_path: Path, override: str, expected: int
) -> None:
    assert training(shrunk(large(tmp_path, override)), "cpt").global_batch_size == expected


def test_a_control_and_its_parts_have_one_batch(tmp_path: Path) -> None:
    stages = """\
  - {name: more, kind: sft, blend: mixed, epochs: 1, sequence_length: 4096, global_batch_size: 64}
  - name: both
    kind: sft_single_stage
    of: [sft, more]
    sequence_length: 4096
    global_batch_size: 64
    layout: {tensor_parallel: 4, data_parallel: 64}
    micro_batch_size: 1
evaluation: """
    head, _, tail = RECIPE.rpartition("evaluation: ")
    recipe = load_recipe(write_large(tmp_path, head + stages + tail), ["cluster.nodes=32"])
    small = shrunk(recipe)
    assert len({training(small, name).global_batch_size for name in ("sft", "more", "both")}) == 1


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    tensor, pipeline = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 2, 4]))
    return Layout(
        tensor_parallel=tensor,
        sequence_parallel=tensor > 1 and draw(st.booleans()),
        pipeline_parallel=pipeline,
        virtual_pipeline=draw(st.sampled_from([1, 2, 3])) if pipeline > 1 else 1,
        context_parallel=draw(st.sampled_from([1, 2, 4])),
        data_parallel=draw(st.sampled_from([1, 2, 4])),
    )


@pytest.fixture(scope="module")
def on_no_cluster(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return large(tmp_path_factory.mktemp("large"), "cluster=null", "cpt.precision={}")


@given(
    layout=layouts(),
    batch=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 4, 8])),
    length=st.sampled_from([64, 640, 4096]),
    steps=st.integers(1, 20),
)
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_what_keeps_every_rule_keeps_every_rule_in_small(
    on_no_cluster: Recipe,
    layout: Layout,
    batch: tuple[int, int],
    length: int,
    steps: int,
) -> None:
    micro_batch, micro_batches = batch
    cpt = training(on_no_cluster, "cpt").model_copy(
        update={
            "layout": layout,
            "micro_batch_size": micro_batch,
            "global_batch_size": micro_batch * micro_batches * layout.data_parallel,
            "sequence_length": length,
            "steps": steps,
            "schedule": Schedule(shape="wsd", warmup_steps=steps // 2),
        }
    )
    stages = [cpt, *on_no_cluster.stages[1:]]
    recipe = on_no_cluster.model_copy(update={"stages": stages})
    shapes, _ = shapes_of(recipe)
    assume(not check_arithmetic(recipe, shapes))
    small, _ = shrink(recipe, shapes)
    shape = replace(shapes["target"], layers=small_layers(recipe, "target"))
    assert check_arithmetic(small, {"target": shape}) == []
