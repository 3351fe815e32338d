"""The search over layouts: what runs, in which order, and why the rest does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from megatron_soaes.planner.memory import rank_memory
from megatron_soaes.planner.parameters import layers_of
from megatron_soaes.planner.search import (
    GIB,
    MORE_RECOMPUTE,
    Candidate,
    fullest_stage,
    search_layouts,
    uneven_ends,
)
from megatron_soaes.planner.time import step_time
from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.training_settings import FP8, Layout, Precision, Recompute
from tests.planner.shapes import LLAMA3_8B, QWEN2_7B, QWEN2_72B, QWEN2_HALF_B, workload
from tests.planner.test_time import workloads


@pytest.fixture(scope="module")
def asked() -> Workload:
    return workload(QWEN2_7B, sequence_length=8192, global_batch_size=64)


@pytest.fixture(scope="module")
def found(asked: Workload) -> list[Candidate]:
    return search_layouts(asked, gpus=8, gpu_kind="h100-80g", gpus_per_node=8)


def in_candidate(asked: Workload, one: Candidate) -> Workload:
    return replace(
        asked, layout=one.layout, micro_batch_size=one.micro_batch_size, recompute=one.recompute
    )


def test_the_fastest_comes_first_and_what_cannot_run_last(found: list[Candidate]) -> None:
    times = [one.step.total for one in found if one.step]
    assert times == sorted(times)
    assert all(one.why_not for one in found[len(times) :])
    assert not any(one.why_not for one in found[: len(times)])


def test_each_layout_uses_all_gpus_and_appears_once(found: list[Candidate]) -> None:
    assert {one.layout.processes for one in found} == {8}
    keys = [(one.layout, one.micro_batch_size) for one in found]
    assert len(set(map(str, keys))) == len(keys)


def test_what_runs_fits_with_the_least_recomputation_that_does(
    asked: Workload, found: list[Candidate]
) -> None:
    for one in found:
        if not one.step:
            continue
        rung = MORE_RECOMPUTE.index(one.recompute)
        less = [
            fullest_stage(in_candidate(asked, replace(one, recompute=recompute)))[1].total
            for recompute in MORE_RECOMPUTE[:rung]
        ]
        assert one.memory is not None
        assert one.memory.total <= 79 * GIB < min(less, default=80 * GIB)


@settings(max_examples=25, deadline=None)
@given(workloads())
def test_recomputing_attention_saves_nothing_that_is_worth_its_time(asked: Workload) -> None:
    """Why it is not searched: it frees less than a hundredth of what MLPs do."""
    needs = {
        modules: fullest_stage(
            replace(asked, recompute=Recompute(granularity="selective", modules=list(modules)))
        )[1].activations
        for modules in (("mlp",), ("core_attn", "mlp"))
    }
    none = fullest_stage(replace(asked, recompute=Recompute()))[1].activations
    freed = none - needs["mlp",]
    assert 0 <= needs["mlp",] - needs["core_attn", "mlp"] < freed / 100


def test_times_are_those_of_the_step(asked: Workload, found: list[Candidate]) -> None:
    assert found[0].step == step_time(in_candidate(asked, found[0]), "h100-80g", 8)


def test_one_gpu_cannot_hold_72b() -> None:
    asked = workload(QWEN2_72B, sequence_length=4096, global_batch_size=8)
    (only,) = (one for one in search_layouts(asked, 1, "h100-80g", 8) if one.micro_batch_size == 1)
    assert only.step is None
    assert only.why_not.startswith("does not fit: ")
    assert only.why_not.endswith(" of 79 GiB at pipeline stage 0, all recomputed")


def test_a_layout_against_the_rules_says_which() -> None:
    asked = workload(QWEN2_HALF_B, sequence_length=4096, global_batch_size=8)
    found = search_layouts(asked, 4, "h100-80g", 4)
    by_four = next(one for one in found if one.layout.tensor_parallel == 4)
    assert by_four.why_not.startswith(
        "tensor_parallel 4: expected a divisor of the attention heads, 14"
    )
    assert by_four.memory is None


def test_a_batch_that_replicas_cannot_share_is_said() -> None:
    asked = workload(QWEN2_HALF_B, sequence_length=4096, global_batch_size=6)
    found = search_layouts(asked, 4, "h100-80g", 4)
    replicas = next(one for one in found if one.layout.data_parallel == 4)
    expected = "global_batch_size 6: expected a multiple of 4 (micro_batch_size x data_parallel)"
    assert replicas.why_not == expected


def test_rules_of_fp8_hold_too() -> None:
    asked = workload(
        QWEN2_7B, sequence_length=4096, global_batch_size=16, precision=Precision(fp8=FP8())
    )
    uneven = replace(asked, shape=replace(QWEN2_7B, ffn=18952))
    found = search_layouts(uneven, 1, "h100-80g", 8)
    assert "the FFN width of a process" in found[0].why_not


def test_layers_that_stages_cannot_share_evenly_leave_less_to_the_last(
    asked: Workload,
) -> None:
    assert uneven_ends(28, 4) == {}
    assert uneven_ends(28, 8) == {"first_stage_layers": 2, "last_stage_layers": 2}
    found = search_layouts(asked, 8, "h100-80g", 8)
    deep = next(one for one in found if one.layout.pipeline_parallel == 8)
    assert [sum(layers_of(deep.layout, 28, stage)) for stage in range(8)] == [2, *[4] * 6, 2]


def test_what_is_only_read_is_ranked_by_tokens() -> None:
    asked = workload(LLAMA3_8B, sequence_length=4096, optimizer=None)
    found = search_layouts(asked, 2, "h100-80g", 8)
    rates = [one.step.tokens_per_second for one in found if one.step]
    assert rates == sorted(rates, reverse=True)
    assert len({one.micro_batch_size for one in found}) > 1


def test_tensor_parallelism_stays_within_a_node(asked: Workload) -> None:
    found = search_layouts(asked, 8, "h100-80g", 2)
    assert max(one.layout.tensor_parallel for one in found) == 2


@settings(max_examples=25, deadline=None)
@given(workloads())
def test_the_fullest_stage_is_the_fullest_of_all(asked: Workload) -> None:
    needs = [rank_memory(asked, stage) for stage in range(asked.layout.pipeline_parallel)]
    stage, memory = fullest_stage(asked)
    assert memory == needs[stage]
    assert memory.total == max(need.total for need in needs)


@pytest.mark.parametrize("virtual", [2, 5])
def test_also_of_virtual_stages(virtual: int) -> None:
    layout = Layout(pipeline_parallel=4, virtual_pipeline=virtual)
    asked = workload(QWEN2_72B, layout, sequence_length=2048, global_batch_size=64)
    needs = [rank_memory(asked, stage).total for stage in range(4)]
    assert fullest_stage(asked)[1].total == max(needs)


@settings(max_examples=25, deadline=None)
@given(workloads())
def test_what_is_recomputed_needs_no_memory(asked: Workload) -> None:
    needs = [
        fullest_stage(replace(asked, recompute=recompute))[1].activations
        for recompute in MORE_RECOMPUTE
    ]
    assert needs == sorted(needs, reverse=True)
