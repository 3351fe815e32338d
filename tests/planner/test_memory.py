"""Memory against what autograd, the schedule, the optimizer and a checkpoint really hold."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.accelerator.groups import Rendezvous, process_group
from megatron_soaes.accelerator.launch import launch
from megatron_soaes.checkpoint.distributed import plan_save
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.data import teacher_store
from megatron_soaes.losses.vocab_parallel import CHUNK_BYTES
from megatron_soaes.planner.activations import (
    NO_RECOMPUTE,
    frequencies_bytes,
    kept_logits_bytes,
    logits_bytes,
    peak_bytes,
    recomputed_bytes,
    sizes_of,
)
from megatron_soaes.planner.memory import (
    LOSS_CHUNK_BYTES,
    RankMemory,
    capture_store_bytes,
    checkpoint_bytes,
    rank_memory,
)
from megatron_soaes.planner.parameters import is_last, rank_parameters
from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.distillation_settings import Store
from megatron_soaes.recipe.schema import CaptureStage
from megatron_soaes.recipe.training_settings import (
    FP8,
    Kernels,
    Layout,
    Optimizer,
    Overlap,
    Precision,
    PrecisionAware,
    Recompute,
)
from megatron_soaes.training.engine import layout_groups
from tests.planner.meter import live, measure, trained
from tests.planner.shapes import QWEN2_7B, QWEN2_72B, QWEN2_HALF_B, TINY, UNPADDED, workload
from tests.planner.two_ranks import LAYOUTS, RECOMPUTES, cases

GIB = 1 << 30
ONE_RANK = cases(Layout())
TWO_RANKS = {
    f"{name} {case}": asked
    for name, layout in LAYOUTS.items()
    for case, asked in cases(layout).items()
}


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), layout_groups(Layout()):
        yield


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks held."""
    folder = tmp_path_factory.mktemp("planner")
    code = launch("tests.planner.two_ranks", [str(folder)], 2, folder / "logs")
    assert code == 0, (folder / "logs" / "rank1.log").read_text(encoding="utf-8")
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def saved_bytes(asked: Workload, stage: int) -> int:
    """All that the plan says is saved at once; full recomputation saves the frequencies, too."""
    planned = peak_bytes(asked, stage, "local")
    if is_last(asked.layout, stage):
        planned += kept_logits_bytes(asked)
    if asked.recompute.granularity == "full":
        planned += asked.layout.virtual_pipeline * frequencies_bytes(asked)
    return planned


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("case", ONE_RANK)
def test_one_rank_saves_what_is_planned(case: str) -> None:
    asked = ONE_RANK[case]
    meter = measure(asked)
    assert meter.saved == saved_bytes(asked, 0)
    assert meter.most <= saved_bytes(asked, 0) + recomputed_bytes(asked, "local", fp8=False)


@pytest.mark.usefixtures("one_process")
def test_several_samples_in_a_micro_batch() -> None:
    asked = workload(TINY, micro_batch_size=3, global_batch_size=6)
    assert measure(asked).saved == saved_bytes(asked, 0)


@pytest.mark.usefixtures("one_process")
def test_swiglu_as_one_kernel_keeps_less() -> None:
    asked = workload(TINY, kernels=Kernels(swiglu=True))
    # What the kernel keeps is the same whether it was compiled or not.
    with torch.compiler.set_stance("force_eager"):
        assert measure(asked).saved == saved_bytes(asked, 0)
    assert saved_bytes(asked, 0) < saved_bytes(workload(TINY), 0)


@pytest.mark.parametrize("case", TWO_RANKS)
def test_two_ranks_save_what_is_planned(case: str, found: list[dict[str, Any]]) -> None:
    asked = TWO_RANKS[case]
    for rank in range(2):
        saved, most = found[rank][case]
        planned = saved_bytes(asked, rank if asked.layout.pipeline_parallel > 1 else 0)
        assert saved == planned - unmasked_bytes(asked, rank)
        assert most <= planned + recomputed_bytes(asked, "local", fp8=False)


def unmasked_bytes(asked: Workload, rank: int) -> int:
    """Of context-parallel ranks the first needs no mask for its first chunk; the plan is of all."""
    recomputed = asked.recompute.granularity == "full" or (
        asked.recompute.granularity == "selective" and "core_attn" in asked.recompute.modules
    )
    if asked.layout.context_parallel == 1 or rank > 0 or recomputed:
        return 0
    width = sizes_of(asked, asked.shape).width
    return asked.shape.layers * (asked.sequence_length // 4) ** 2 * width


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_gradients_and_optimizer_of_one_rank(dtype: str) -> None:
    asked = workload(UNPADDED, precision=Precision(dtype=dtype))
    assert live(trained(asked)) == lasting(asked)


@pytest.mark.parametrize("name", ["dp2", "cp2"])
def test_replicas_and_context_ranks_share_the_optimizer(
    name: str, found: list[dict[str, Any]]
) -> None:
    planned = lasting(workload(UNPADDED, LAYOUTS[name]))
    for rank in range(2):
        assert found[rank][f"live {name}"] == planned


def lasting(asked: Workload) -> dict[str, int]:
    memory = rank_memory(asked, 0, "local")
    return {name: getattr(memory, name) for name in ("weights", "gradients", "optimizer")}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_checkpoint_has_the_planned_size(dtype: str, tmp_path: Path) -> None:
    asked = workload(TINY, precision=Precision(dtype=dtype))
    engine = trained(asked)
    state: Any = SimpleNamespace(iteration=1, schedule={})
    plan_save(tmp_path, engine.chunks, engine.optimizer, state, Namespace()).execute_sync()
    reader = TorchDistReader(tmp_path)
    tensors = sum(
        math.prod(shape) * reader.dtype(key).itemsize for key, shape in reader.shapes.items()
    )
    assert checkpoint_bytes(asked) == tensors


def test_weights_alone_are_saved_of_a_model_that_is_not_trained() -> None:
    asked = workload(QWEN2_HALF_B, optimizer=None, vocab_size=QWEN2_HALF_B.vocab_size)
    assert checkpoint_bytes(asked) == 2 * QWEN2_HALF_B.parameters


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_teacher_store_has_the_planned_size(kind: Any, dtype: Any) -> None:
    stage = CaptureStage(
        name="capture",
        kind="capture",
        blend="words",
        sequence_length=48,
        store=Store(kind=kind, entries=5, dtype=dtype, samples_per_shard=4),
    )
    layout = teacher_store.Layout(kind, 5, 10, 48, 4, dtype)
    written = sum(layout.shard_bytes(shard) for shard in range(layout.shards))
    assert capture_store_bytes(stage, samples=10) == written


def test_the_losses_work_on_chunks_of_the_planned_size() -> None:
    assert CHUNK_BYTES["cuda"] == LOSS_CHUNK_BYTES


ON_64 = Layout(tensor_parallel=8, sequence_parallel=True, pipeline_parallel=4, data_parallel=2)


def training_72b(layout: Layout = ON_64, **changes: Any) -> Workload:
    """The published case: 8,192 tokens on 64 GPUs, bf16."""
    wanted = {"sequence_length": 8192, "global_batch_size": 512} | changes
    return workload(QWEN2_72B, layout, **wanted)


def test_the_published_case_by_hand() -> None:
    asked = training_72b()
    memory, parameters = rank_memory(asked, 1), rank_parameters(asked, 1)
    assert memory.weights == 2 * parameters
    assert memory.gradients == 4 * parameters
    assert memory.optimizer == 12 * parameters // 2
    assert memory.logits == memory.fp8_copies == memory.teacher == 0
    in_turn = ("updating", "saving")
    assert memory.total == sum(
        getattr(memory, field.name) for field in fields(RankMemory) if field.name not in in_turn
    )


def test_only_the_last_stage_has_logits() -> None:
    asked = training_72b()
    assert [rank_memory(asked, stage).logits > 0 for stage in range(4)] == [False] * 3 + [True]
    logits = 2 * 8192 * 152064 // 8
    assert rank_memory(asked, 3).logits == 2 * logits + 18 * 8192 + 2 * (4 * 19008 * 3530)


def test_earlier_stages_hold_more_micro_batches() -> None:
    held = [rank_memory(training_72b(), stage).activations for stage in (1, 2)]
    alone = rank_memory(training_72b(global_batch_size=2), 1).activations
    assert alone < held[1] < held[0]


@pytest.mark.parametrize(("virtual", "in_flight", "late"), [(1, 3, 1), (2, 9, 0)])
def test_an_output_goes_once_it_is_sent(virtual: int, in_flight: int, late: int) -> None:
    """All recomputed, a pass keeps what came into each of its layers; one output is under way."""
    layout = ON_64.model_copy(update={"virtual_pipeline": virtual})
    asked = training_72b(layout=layout, recompute=RECOMPUTES["full"])
    states = 8192 // 8 * 8192 * 2
    held = in_flight * 20 // virtual + 1 + late
    assert peak_bytes(asked, 1, "transformer_engine") == held * states


@pytest.mark.parametrize(
    ("aware", "width"),
    [
        (PrecisionAware(), 10),
        (PrecisionAware(first_moment="bf16", second_moment="bf16"), 6),
        (PrecisionAware(main_weights="fp16", first_moment="fp8", second_moment="fp8"), 4),
    ],
)
def test_a_precision_aware_optimizer_keeps_fewer_bits(aware: PrecisionAware, width: int) -> None:
    asked = workload(QWEN2_7B, optimizer=Optimizer(precision_aware=aware))
    assert rank_memory(asked, 0).optimizer == width * rank_parameters(asked, 0)


IN_BF16 = PrecisionAware(first_moment="bf16", main_gradients="bf16")


@pytest.mark.parametrize(
    ("aware", "fp8", "kept", "widened"),
    [
        (None, None, 12, 0),
        (PrecisionAware(), None, 10, 0),
        (PrecisionAware(first_moment="bf16", second_moment="bf16"), None, 6, 8),
        (PrecisionAware(main_weights="fp16", second_moment="fp8"), None, 7, 8),
        (IN_BF16, FP8(), 8, 4),
        # Of FP8 weights fp32 main weights are kept whole, but for one recipe by the core.
        (IN_BF16, FP8(param_gather=True), 10, 8),
        (IN_BF16, FP8(recipe="delayed", param_gather=True), 10, 4),
        (PrecisionAware(main_weights="fp16"), FP8(param_gather=True), 10, 4),
    ],
)
def test_state_in_fewer_bits_is_widened_for_the_update(
    aware: PrecisionAware | None, fp8: FP8 | None, kept: int, widened: int
) -> None:
    """Without replicas, so that all of it is this rank's."""
    precision = Precision(fp8=fp8)
    asked = workload(
        QWEN2_7B, optimizer=Optimizer(precision_aware=aware), precision=precision,
        overlap=Overlap(grad_reduce=True),
    )  # fmt: skip
    memory, parameters = rank_memory(asked, 0), rank_parameters(asked, 0)
    assert memory.optimizer == kept * parameters
    assert memory.updating == widened * parameters
    most = max(memory.activations + memory.logits, memory.updating, memory.saving)
    assert memory.allocated == memory.lasting + most


def test_gradients_in_bf16_take_half() -> None:
    aware = PrecisionAware(main_gradients="bf16")
    asked = workload(QWEN2_7B, optimizer=Optimizer(precision_aware=aware))
    assert rank_memory(asked, 0).gradients == 2 * rank_parameters(asked, 0)


def test_fp8_keeps_two_copies_of_the_matrices_of_its_layers() -> None:
    in_fp8 = Precision(fp8=FP8(first_last_layers_bf16=True))
    memory = rank_memory(training_72b(precision=in_fp8), 0)
    matrices = 2 * 8192 * (8192 + 1024) + 3 * 8192 * 29568
    assert memory.fp8_copies == 2 * 19 * matrices // 8
    assert memory.activations < rank_memory(training_72b(), 0).activations


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_weights_that_are_in_fp8_themselves_have_only_transposes_as_copies(recipe: Any) -> None:
    copied, themselves = (
        rank_memory(training_72b(precision=Precision(fp8=FP8(recipe=recipe, param_gather=kept))), 1)
        for kept in (False, True)
    )
    assert copied.fp8_copies == 2 * themselves.fp8_copies
    # A byte of each number of the matrices, of which there is one transpose.
    assert copied.weights - themselves.weights == themselves.fp8_copies
    assert copied.total > themselves.total + 2 * themselves.fp8_copies


def test_reading_needs_no_gradients_and_no_transposes() -> None:
    asked = training_72b(optimizer=None, precision=Precision(fp8=FP8()))
    memory, training = rank_memory(asked, 0), training_72b(precision=Precision(fp8=FP8()))
    assert memory.gradients == memory.optimizer == memory.saving == 0
    assert 2 * memory.fp8_copies == rank_memory(training, 0).fp8_copies


def test_a_teacher_brings_its_weights_and_its_logits() -> None:
    layout = Layout(tensor_parallel=8)
    alone = workload(QWEN2_7B, layout, sequence_length=4096)
    beside = replace(alone, teacher=QWEN2_72B)
    teacher = rank_memory(beside, 0).teacher
    weights = 2 * rank_parameters(replace(alone, shape=QWEN2_72B), 0)
    assert weights + 2 * 4096 * 152064 // 8 < teacher < weights + 3 * GIB
    assert rank_memory(alone, 0).teacher == 0


def test_the_frozen_draft_of_a_selection_counts_beside_the_teacher() -> None:
    alone = workload(QWEN2_HALF_B, sequence_length=4096)
    teacher = rank_memory(replace(alone, teacher=QWEN2_7B), 0).teacher
    both = rank_memory(replace(alone, teacher=QWEN2_7B, reference=True), 0).teacher
    frozen = rank_memory(replace(alone, optimizer=None), 0)
    assert both - teacher == frozen.weights + frozen.activations + logits_bytes(alone)


def test_a_save_may_need_more_than_a_step() -> None:
    asked = workload(QWEN2_7B, Layout(data_parallel=8), sequence_length=128)
    memory = rank_memory(asked, 0)
    assert memory.saving == 4 * (rank_parameters(asked, 0) + rank_parameters(asked, 0) // 8)
    assert memory.saving > memory.activations + memory.logits
    assert memory.total == memory.lasting + memory.saving + memory.margin
    in_buckets = replace(asked, overlap=Overlap(grad_reduce=True))
    assert rank_memory(in_buckets, 0).saving < memory.saving // 3


LAYOUT_STRATEGY = st.builds(
    Layout,
    tensor_parallel=st.sampled_from([2, 4, 8]),
    sequence_parallel=st.booleans(),
    pipeline_parallel=st.sampled_from([1, 2, 4]),
    context_parallel=st.sampled_from([1, 2]),
    data_parallel=st.sampled_from([1, 2, 8]),
)
SMALLER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"recompute": RECOMPUTES["core_attn"]}),
    ({"recompute": RECOMPUTES["core_attn"]}, {"recompute": RECOMPUTES["all-three"]}),
    ({"recompute": RECOMPUTES["all-three"]}, {"recompute": RECOMPUTES["full"]}),
    ({}, {"precision": Precision(fp8=FP8())}),
    ({"sequence_length": 8192}, {}),
    ({"micro_batch_size": 2, "global_batch_size": 64}, {"global_batch_size": 32}),
]


@given(LAYOUT_STRATEGY, st.sampled_from(SMALLER), st.sampled_from(["local", "transformer_engine"]))
def test_what_saves_less_is_never_planned_larger(
    layout: Layout, pair: tuple[dict[str, Any], dict[str, Any]], implementation: Any
) -> None:
    larger, smaller = (
        peak_bytes(
            workload(QWEN2_72B, layout, **({"sequence_length": 4096} | changes)), 0, implementation
        )
        for changes in pair
    )
    assert smaller <= larger


@given(LAYOUT_STRATEGY)
def test_more_ranks_never_need_more_each(layout: Layout) -> None:
    def total(**changes: Any) -> int:
        wider = layout.model_copy(update=changes)
        return rank_memory(workload(QWEN2_72B, wider, sequence_length=4096), 0).total

    assert total(data_parallel=2 * layout.data_parallel) <= total()
    assert total(context_parallel=2 * layout.context_parallel) <= total()
    assert total(sequence_parallel=True) <= total(sequence_parallel=False)
    if layout.tensor_parallel < 8:
        assert total(tensor_parallel=2 * layout.tensor_parallel) <= total()


def test_norms_within_linear_layers_are_not_recomputed() -> None:
    norms = Recompute(granularity="selective", modules=["layernorm"])
    saved = [
        peak_bytes(training_72b(recompute=recompute), 0, "transformer_engine")
        for recompute in (NO_RECOMPUTE, norms)
    ]
    assert saved[0] == saved[1]
