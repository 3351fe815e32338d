"""CUDA graphs, user buffers, FP8's state: what is asked of Megatron-Core and Transformer Engine.

None exists without a GPU, so each ends here at a stand-in for the outermost call; that they work
is for tests/gpu, and for a machine with several GPUs, to show.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
import torch
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.cuda_graphs import TECudaGraphHelper
from megatron.core.transformer.enums import CudaGraphScope
from torch import Tensor

from megatron_soaes.models.build import BuildOptions, transformer_config
from megatron_soaes.models.norm import RMSNorm
from megatron_soaes.recipe.training_settings import Kernels, Layout, Overlap
from megatron_soaes.training import graphs
from megatron_soaes.training.trainer import train
from tests.training.material import BATCH, SEQUENCE, make_job
from tests.training.meddling import terminate_in
from tests.training.watched import WatchedTrainer, run

BF16 = {"precision": {"dtype": "bf16"}, "steps": 3}


@pytest.mark.usefixtures("one_process")
def test_scaling_factors_and_their_history_come_back_with_a_resume(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megatron-Core's layers, given an extra state of the kind that Transformer Engine's have."""
    found: list[list[int]] = []

    def linears(trainer: WatchedTrainer) -> list[Any]:
        modules = trainer.engine.chunks[0].decoder.modules()
        return [one for one in modules if isinstance(one, ColumnParallelLinear | RowParallelLinear)]

    def change_and_stop(trainer: WatchedTrainer, step: int) -> None:
        if step == 3:
            for number, linear in enumerate(linears(trainer)):
                linear.history = torch.tensor([number, *b"amax"], dtype=torch.uint8)
        terminate_in(3)(trainer, step)

    def look_and_stop(trainer: WatchedTrainer, step: int) -> None:
        found.append([int(linear.history[0]) for linear in linears(trainer)])
        terminate_in(4)(trainer, step)

    for layer in (ColumnParallelLinear, RowParallelLinear):
        # Bytes, as Transformer Engine 2.11 gives; an imported checkpoint has none.
        monkeypatch.setattr(layer, "get_extra_state", lambda one: getattr(one, "history", None))
        monkeypatch.setattr(layer, "set_extra_state", _set)
    run(make_job(material, tmp_path), change_and_stop)
    job = make_job(material, tmp_path)
    run(job, look_and_stop)
    assert found == [list(range(4 * job.shape.layers))]


def _set(linear: Any, history: Tensor | None) -> None:
    linear.history = history


@pytest.mark.usefixtures("one_process")
def test_norms_that_keep_a_state_take_a_checkpoint_without_one(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformer Engine's norms do; a run with local layers writes none."""
    run(make_job(material, tmp_path), terminate_in(3))
    empty = torch.empty(0, dtype=torch.uint8)
    monkeypatch.setattr(RMSNorm, "get_extra_state", lambda one: empty, raising=False)
    monkeypatch.setattr(RMSNorm, "set_extra_state", _set, raising=False)
    assert train(make_job(material, tmp_path)).completed


@pytest.mark.usefixtures("one_process")
def test_graphs_are_recorded_before_the_first_step_and_go_after_the_last(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = create_autospec(TECudaGraphHelper)
    in_flight: list[int] = []
    random_streams = stand_in(monkeypatch, "distributed", ["set_all_rng_states"])

    def record() -> None:
        in_flight.append(get_num_microbatches())
        # Megatron-Core's are tensors; Transformer Engine would take them for generators.
        random_streams.set_all_rng_states.assert_called_once_with({})

    recorder.return_value.create_cudagraphs.side_effect = record
    monkeypatch.setattr(graphs, "TECudaGraphHelper", recorder)
    plain = train(make_job(material, tmp_path / "plain", **BF16))
    job = make_job(material, tmp_path / "graphs", **BF16, kernels={"mlp_graphs": True})
    assert train(job) == plain
    assert in_flight == [BATCH]
    (_, config, tokens, rows, _), _ = recorder.call_args
    assert (tokens, rows) == (SEQUENCE * job.stage.micro_batch_size, 1)
    assert config.cuda_graph_impl == "transformer_engine"
    assert config.cuda_graph_scope == [CudaGraphScope.mlp]
    recorder.return_value.delete_cuda_graphs.assert_called_once_with()


@pytest.mark.usefixtures("one_process")
def test_a_recording_that_fails_leaves_nothing_behind(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = create_autospec(TECudaGraphHelper)
    recorder.return_value.create_cudagraphs.side_effect = [MemoryError, None]
    stand_in(monkeypatch, "distributed", ["set_all_rng_states"])
    monkeypatch.setattr(graphs, "TECudaGraphHelper", recorder)
    job = make_job(material, tmp_path, **BF16, kernels={"mlp_graphs": True})
    with pytest.raises(MemoryError):
        train(job)
    recorder.return_value.delete_cuda_graphs.assert_not_called()
    assert train(job).completed


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, names: list[str]) -> Mock:
    """What stands at transformer_engine.pytorch.MODULE, with the calls it got."""
    name, stand = "transformer_engine.pytorch", Mock(spec=names)
    for part in module.split("."):
        parent, name = name, f"{name}.{part}"
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, "transformer_engine", ModuleType("transformer_engine"))
    monkeypatch.setitem(sys.modules, name, stand)
    setattr(sys.modules[parent], part, stand)
    return stand


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Mock:
    names = ["initialize_ub", "destroy_ub", "UserBufferQuantizationMode"]
    return stand_in(monkeypatch, "module.base", names)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("fp8", "kinds"),
    [
        (None, ["NONE"]),
        ({}, ["FP8"]),
        ({"first_last_layers_bf16": True}, ["FP8", "NONE"]),
    ],
)
def test_user_buffers_are_there_from_before_the_layers_to_the_end(
    material: Path, tmp_path: Path, engine: Mock, fp8: dict[str, bool] | None, kinds: list[str]
) -> None:
    job = make_job(
        material,
        tmp_path / "run",
        layout=Layout(tensor_parallel=2, sequence_parallel=True),
        precision={"dtype": "bf16", "fp8": fp8},
        overlap={"tensor_parallel": True},
    )

    class Built(Exception):
        pass

    engine.initialize_ub.side_effect = Built
    with pytest.raises(Built):
        train(job)
    modes = engine.UserBufferQuantizationMode
    engine.initialize_ub.assert_called_once_with(
        [SEQUENCE, job.shape.hidden],
        2,
        quantization_modes=[getattr(modes, kind) for kind in kinds],
        bootstrap_backend="nccl",
    )


def test_what_overlaps_has_megatron_cores_names(material: Path, tmp_path: Path) -> None:
    shape = make_job(material, tmp_path).shape
    layout = Layout(pipeline_parallel=2, virtual_pipeline=2)

    def config(overlap: Overlap, kernels: Kernels | None = None) -> dict[str, object]:
        options = BuildOptions(
            torch.bfloat16, 256, layout, kernels=kernels or Kernels(), overlap=overlap
        )
        found = transformer_config(shape, options)
        return {
            "exchanges": found.tp_comm_overlap,
            "messages": (found.overlap_p2p_comm, found.batch_p2p_comm),
            "graphs": found.cuda_graph_impl,
        }

    plain = {"exchanges": False, "messages": (True, False), "graphs": "none"}
    assert config(Overlap()) == plain
    # Over gloo batched messages are wrong, so what was asked for stays out here.
    assert config(Overlap(pipeline=False)) == plain
    assert config(Overlap(tensor_parallel=True)) == plain | {"exchanges": True}
    graphed = config(Overlap(), Kernels(mlp_graphs=True))
    assert graphed == plain | {"graphs": "transformer_engine"}
