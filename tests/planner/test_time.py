"""Seconds of a step: what must hold of any layout, and what published runs took."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_soaes.errors import UserError
from megatron_soaes.planner.hardware import LINKS, rates_of
from megatron_soaes.planner.parameters import rank_parameters
from megatron_soaes.planner.published import FITTED, HELD_OUT, Published, residual_table
from megatron_soaes.planner.search import MORE_RECOMPUTE
from megatron_soaes.planner.stage_time import (
    NETWORK_LATENCY,
    NVLINK_LATENCY,
    link_of,
    product_seconds,
)
from megatron_soaes.planner.time import step_time
from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.training_settings import (
    FP8,
    Layout,
    Optimizer,
    Overlap,
    Precision,
    PrecisionAware,
    Recompute,
)
from tests.planner.shapes import LLAMA3_70B, QWEN2_7B, QWEN2_72B, QWEN3_32B, workload

PAGE = Path("docs/planner.md")
SHAPES = st.sampled_from([QWEN2_7B, QWEN2_72B, QWEN3_32B, LLAMA3_70B])


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Training that the recipe's rules allow, of a published shape."""
    tensor = draw(st.sampled_from([1, 2, 4]))
    pipeline = draw(st.sampled_from([1, 2, 4]))
    layout = Layout(
        tensor_parallel=tensor,
        sequence_parallel=tensor > 1,
        pipeline_parallel=pipeline,
        context_parallel=draw(st.sampled_from([1, 2])),
        data_parallel=draw(st.sampled_from([1, 2, 8])),
    )
    each = pipeline * draw(st.sampled_from([1, 4, 16]))
    overlaps = draw(st.booleans())
    return workload(
        draw(SHAPES),
        layout,
        sequence_length=draw(st.sampled_from([2048, 8192])),
        global_batch_size=each * layout.data_parallel,
        precision=Precision(fp8=draw(st.sampled_from([None, FP8(), FP8(recipe="delayed")]))),
        overlap=Overlap(grad_reduce=overlaps, param_gather=overlaps),
    )


def seconds(asked: Workload) -> float:
    return step_time(asked, "h100-80g", 8).total


def no_less(longer: float, shorter: float) -> bool:
    """Sums of the same parts in another order differ by rounding."""
    return longer >= shorter * (1 - 1e-12)


@pytest.mark.parametrize("run", [*FITTED, *HELD_OUT], ids=lambda run: f"{run.name} {run.seconds}")
def test_the_model_is_within_a_tenth_of_each_published_run(run: Published) -> None:
    assert abs(run.residual) < 0.10


def test_the_page_prints_the_residuals_as_they_are() -> None:
    assert residual_table() in PAGE.read_text(encoding="utf-8")


@settings(max_examples=40, deadline=None)
@given(workloads())
def test_what_is_recomputed_costs_time(asked: Workload) -> None:
    steps = [seconds(replace(asked, recompute=recompute)) for recompute in MORE_RECOMPUTE]
    assert all(no_less(longer, shorter) for shorter, longer in pairwise(steps))


@settings(max_examples=40, deadline=None)
@given(workloads())
def test_causes_add_up_and_none_is_negative(asked: Workload) -> None:
    step = step_time(asked, "h100-80g", 8)
    causes = [
        step.compute, step.pipeline_bubble, step.tensor_parallel, step.context_parallel,
        step.pipeline_parallel, step.data_parallel, step.optimizer,
    ]  # fmt: skip
    assert min(causes) >= 0
    assert step.total == pytest.approx(sum(causes))
    assert step.tokens_per_second * step.total == pytest.approx(step.tokens)
    done = step.mfu * step.peak_tflops * 1e12 * step.gpus * step.total
    assert done == pytest.approx(step.model_flops)
    assert 0 < step.mfu < 0.65


@settings(max_examples=40, deadline=None)
@given(workloads())
def test_more_micro_batches_make_the_bubble_a_smaller_share(asked: Workload) -> None:
    twice = replace(asked, global_batch_size=2 * asked.global_batch_size)
    once, more = step_time(asked, "h100-80g", 8), step_time(twice, "h100-80g", 8)
    assert more.pipeline_bubble == once.pipeline_bubble
    assert more.compute == pytest.approx(2 * once.compute)


@settings(max_examples=40, deadline=None)
@given(workloads())
def test_overlap_never_costs_time(asked: Workload) -> None:
    both = Overlap(grad_reduce=True, param_gather=True)
    exposed, hidden = replace(asked, overlap=Overlap()), replace(asked, overlap=both)
    assert no_less(seconds(exposed), seconds(hidden))


@settings(max_examples=40, deadline=None)
@given(workloads())
def test_without_sequence_parallelism_a_step_is_never_shorter(asked: Workload) -> None:
    whole = asked.layout.model_copy(update={"sequence_parallel": False})
    assert no_less(seconds(replace(asked, layout=whole)), seconds(asked))


@settings(max_examples=40, deadline=None)
@given(workloads())
def test_more_tensor_parallelism_leaves_a_rank_no_more_weights(asked: Workload) -> None:
    tensor = 2 * asked.layout.tensor_parallel
    finer = asked.layout.model_copy(update={"tensor_parallel": tensor, "sequence_parallel": True})
    for stage in range(asked.layout.pipeline_parallel):
        less = rank_parameters(replace(asked, layout=finer), stage)
        assert less < rank_parameters(asked, stage)


@settings(max_examples=20, deadline=None)
@given(workloads())
def test_forward_passes_alone_take_less_than_half(asked: Workload) -> None:
    read = replace(asked, optimizer=None)
    assert seconds(read) < seconds(asked) / 2
    assert step_time(read, "h100-80g", 8).data_parallel == 0


def pipelined(virtual: int, micro_batches: int = 8) -> Workload:
    layout = Layout(pipeline_parallel=4, virtual_pipeline=virtual)
    tiny_vocabulary = replace(QWEN2_72B, vocab_size=128)
    return workload(
        tiny_vocabulary, layout, sequence_length=4096, global_batch_size=micro_batches
    )  # fmt: skip


@pytest.mark.parametrize("virtual", [1, 2, 5])
def test_the_bubble_of_equal_stages_is_that_of_the_interleaved_schedule(virtual: int) -> None:
    step = step_time(pipelined(virtual), "h100-80g", 8)
    assert step.pipeline_bubble / step.compute == pytest.approx(3 / (8 * virtual), rel=1e-3)


def test_messages_between_stages_show_only_without_virtual_stages() -> None:
    plain = step_time(pipelined(1), "h100-80g", 8)
    chunked = step_time(pipelined(2), "h100-80g", 8)
    assert plain.pipeline_parallel > chunked.pipeline_parallel > 0


def test_fewer_layers_beside_the_output_layer_make_a_shorter_step() -> None:
    """A vocabulary of 152,064 rows multiplies more than a layer does."""
    layout = Layout(pipeline_parallel=4)
    even = workload(QWEN2_72B, layout, sequence_length=4096, global_batch_size=64)
    lighter = layout.model_copy(update={"first_stage_layers": 21, "last_stage_layers": 19})
    assert seconds(replace(even, layout=lighter)) < seconds(even)


@pytest.mark.parametrize(
    "fp8", [FP8(recipe="delayed"), FP8(recipe="tensorwise"), FP8(recipe="blockwise")]
)
def test_fp8_products_are_faster_and_their_casts_cost(fp8: FP8) -> None:
    asked = workload(QWEN2_72B, Layout(tensor_parallel=4, sequence_parallel=True),
                     sequence_length=8192)  # fmt: skip
    in_fp8 = replace(asked, precision=Precision(fp8=fp8))
    assert seconds(asked) / 2 < seconds(in_fp8) < seconds(asked)


def test_two_layers_in_bf16_cost_a_little_of_that() -> None:
    layout = Layout(tensor_parallel=8, sequence_parallel=True)
    all_fp8, most = (
        workload(QWEN2_72B, layout, sequence_length=8192,
                 precision=Precision(fp8=FP8(first_last_layers_bf16=kept)))
        for kept in (False, True)
    )  # fmt: skip
    assert seconds(all_fp8) < seconds(most) < 1.05 * seconds(all_fp8)


def test_fp8_is_refused_on_gpus_without_it() -> None:
    asked = workload(QWEN2_7B, sequence_length=4096, precision=Precision(fp8=FP8()))
    with pytest.raises(UserError, match=r"FP8 on a100-80g; expected a GPU with FP8"):
        step_time(asked, "a100-80g", 8)


def test_a_teacher_runs_forward_beside_its_student() -> None:
    student = workload(QWEN2_7B, Layout(tensor_parallel=8, sequence_parallel=True),
                       sequence_length=4096)  # fmt: skip
    taught = replace(student, teacher=QWEN2_72B)
    alone = replace(student, shape=QWEN2_72B, optimizer=None)
    extra = seconds(taught) - seconds(student)
    assert extra == pytest.approx(seconds(alone), rel=0.05)
    compared = replace(taught, reference=True)
    extra = seconds(compared) - seconds(taught)
    assert extra == pytest.approx(seconds(replace(student, optimizer=None)), rel=0.05)


def test_precision_aware_state_is_widened_for_the_update_which_takes_longer() -> None:
    asked = workload(QWEN2_7B, sequence_length=4096)
    aware = PrecisionAware(first_moment="bf16", second_moment="bf16")
    smaller = replace(asked, optimizer=Optimizer(precision_aware=aware))
    full, widened = (step_time(one, "h200-141g", 8).optimizer for one in (asked, smaller))
    # Of both moments and the remainder of the main weight 6 bytes for 12; 8 more, four times.
    extra = rank_parameters(asked, 0) * (2 * (6 - 12) + 4 * 8)
    assert widened - full == pytest.approx(extra / rates_of("h200-141g").memory)


def test_weights_that_are_in_fp8_are_gathered_in_half_the_bytes() -> None:
    asked = workload(QWEN2_7B, Layout(data_parallel=16), sequence_length=4096)
    copied, themselves = (
        step_time(replace(asked, precision=Precision(fp8=FP8(param_gather=kept))), "h100-80g", 8)
        for kept in (False, True)
    )
    # One byte less of each number of 28 layers' matrices, to the other fifteen replicas.
    matrices = 28 * (2 * 3584 * (3584 + 512) + 3 * 3584 * 18944)
    across = link_of(16, 1, 8, rates_of("h100-80g"))
    saved = matrices * 15 / 16 / across.bytes_per_second
    assert copied.data_parallel - themselves.data_parallel == pytest.approx(saved)


def test_tensor_parallel_exchanges_follow_the_links() -> None:
    """The H800 is an H100 with less NVLink."""
    asked = workload(QWEN2_72B, Layout(tensor_parallel=8, sequence_parallel=True),
                     sequence_length=8192)  # fmt: skip
    fast, slow = (step_time(asked, gpu, 8) for gpu in ("h100-80g", "h800-80g"))
    assert slow.compute == fast.compute
    assert 2 < slow.tensor_parallel / fast.tensor_parallel < 450 / 200


def test_fewer_kv_heads_than_ranks_are_gathered_both_ways() -> None:
    layout = Layout(tensor_parallel=8, sequence_parallel=True)
    one_micro_batch = workload(QWEN2_72B, layout, sequence_length=8192, global_batch_size=1)
    fewer = replace(QWEN2_72B, kv_heads=4)
    step, gathered = (
        step_time(replace(one_micro_batch, shape=shape), "h100-80g", 8).tensor_parallel
        for shape in (QWEN2_72B, fewer)
    )
    link = link_of(8, 1, 8, rates_of("h100-80g"))
    each = link.seconds(8192 * (64 + 2 * 4) * 128 * 2 * 7 / 8)
    assert gathered - step == pytest.approx(2 * 80 * each)


def test_the_context_ring_hides_behind_attention_over_nvlink_and_not_over_a_slow_network() -> None:
    layout = Layout(tensor_parallel=8, sequence_parallel=True, context_parallel=4)
    asked = workload(QWEN2_72B, layout, sequence_length=8192)
    assert step_time(asked, "h100-80g", 32).context_parallel == 0
    as_many_keys = replace(asked, shape=replace(QWEN2_72B, kv_heads=64))
    assert step_time(as_many_keys, "h100-80g", 8).context_parallel > 0


def test_a_group_within_a_node_talks_over_nvlink_others_over_their_adapters() -> None:
    rates = rates_of("h100-80g")
    within, across = link_of(8, 1, 8, rates), link_of(4, 8, 8, rates)
    assert (within.bytes_per_second, within.latency) == (rates.nvlink, NVLINK_LATENCY)
    assert (across.bytes_per_second, across.latency) == (rates.network, NETWORK_LATENCY)
    # Sixteen replicas with four in each node send through four adapters of it.
    assert link_of(16, 2, 8, rates).bytes_per_second == 4 * rates.network


@given(st.integers(64, 8192), st.integers(64, 8192), st.integers(64, 8192))
def test_products_never_beat_the_datasheet_and_small_ones_reach_less(
    m: int, n: int, k: int
) -> None:
    rates = rates_of("h100-80g")
    rate = 2 * m * n * k / product_seconds((m, n, k), "bf16", rates)
    larger = 16 * m * n * k / product_seconds((2 * m, 2 * n, 2 * k), "bf16", rates)
    assert rate < larger < rates.bf16


def test_recomputing_what_is_listed_is_what_costs() -> None:
    asked = workload(QWEN2_72B, sequence_length=8192)
    parts = []
    for module in ("layernorm", "core_attn", "mlp"):
        recompute = Recompute(granularity="selective", modules=[module])
        parts.append(seconds(replace(asked, recompute=recompute)) - seconds(asked))
    full = seconds(replace(asked, recompute=Recompute(granularity="full"))) - seconds(asked)
    assert 0 < parts[0] < parts[1] < parts[2]
    assert sum(parts) < full


def test_every_kind_of_gpu_has_its_links() -> None:
    assert LINKS.keys() == GPUS.keys()
