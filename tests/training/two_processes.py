"""All runs on two processes: `python -m tests.training.two_processes FOLDER` is one rank of them.

FOLDER holds the material and the runs of one process; each run leaves its folder below FOLDER/runs.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_soaes.accelerator.groups import (
    model_parallel,
    process_group,
    rendezvous_from_environment,
    world_rank,
)
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.job import TrainingJob
from tests.training import meddling
from tests.training.distilling import make_captured_job, make_online_job
from tests.training.material import make_job, make_sft_job
from tests.training.watched import Meddler, run

DATA = Layout(data_parallel=2)
TENSOR = Layout(tensor_parallel=2)
SEQUENCE = Layout(tensor_parallel=2, sequence_parallel=True)
BF16: dict[str, Any] = {"precision": {"dtype": "bf16"}, "steps": 6}
TRACED: dict[str, Any] = {"profile": {"steps": (2, 3), "ranks": [1]}}
PIPELINE = Layout(pipeline_parallel=2)
UNEVEN = Layout(pipeline_parallel=2, first_stage_layers=3, last_stage_layers=1)
INTERLEAVED = Layout(pipeline_parallel=2, virtual_pipeline=2)
CONTEXT = Layout(context_parallel=2)
FULL: dict[str, Any] = {"recompute": {"granularity": "full"}}
SELECTIVE: dict[str, Any] = {"recompute": {"granularity": "selective"}}
OVERLAP: dict[str, Any] = {"overlap": {"grad_reduce": True, "param_gather": True}}
SPOILED = (2, 4, 5)
"""Steps that are not finite: one that is forgiven, then two in a row, one too many."""
IMPATIENT: dict[str, Any] = {"non_finite": {"stop_after": 2}, "checkpoints": {"every": 3}}


class Runs:
    """Does one run after the other in the layout that is active."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder = folder
        self._layout = layout

    def __call__(
        self,
        name: str,
        *,
        model: str = "qwen3",
        meddle: Meddler | None = None,
        after: str | None = None,
        make: Callable[..., TrainingJob] = make_job,
        **changes: Any,
    ) -> None:
        """Run from the start, or go on where the run `after` was left, in whatever layout."""
        runs = self._folder / "runs"
        if world_rank() == 0 and after is not None:
            shutil.copytree(runs / after, runs / name)
        job = make(self._folder, runs / name, model, self._layout, **changes)
        run(job, meddle)


def main(folder: Path) -> None:
    with process_group(rendezvous_from_environment()):
        with model_parallel(tensor=2):
            tensor_runs(Runs(folder, TENSOR))
            sequence_runs(Runs(folder, SEQUENCE))
        with model_parallel():
            data_runs(Runs(folder, DATA))
        with model_parallel(pipeline=2):
            pipeline_runs(folder)
        with model_parallel(pipeline=2, virtual_pipeline=2):
            interleaved_runs(Runs(folder, INTERLEAVED))
        with model_parallel(context=2):
            context_runs(Runs(folder, CONTEXT))


def tensor_runs(run: Runs) -> None:
    run("tp2")
    run("tp2-full", **FULL)
    run("tp2-selective", **SELECTIVE)
    run("one-to-tp2", after="one-stopped")
    run("tp2-nan-activations", meddle=meddling.spoil_activations(SPOILED, rank=1), **IMPATIENT)
    run("tp2-nan-norm", meddle=meddling.spoil_final_norm(SPOILED, rank=1), **IMPATIENT)


def sequence_runs(run: Runs) -> None:
    run("tp2-sp")
    run("tp2-sp-full", **FULL)
    run("tp2-sp-selective", **SELECTIVE)
    run("tp2-sp-stopped", meddle=meddling.terminate_in(7, rank=1))
    run("tp2-sp-resumed", after="tp2-sp-stopped")
    run("tp2-sp-bf16", **BF16)
    run("tp2-sp-bf16-stopped", meddle=meddling.terminate_in(3, rank=1), **BF16)
    run("tp2-sp-bf16-resumed", after="tp2-sp-bf16-stopped", **BF16)
    run("tp2-sp-qwen2", model="qwen2")
    run("tp2-sp-sft", make=make_sft_job)
    run("tp2-sp-online", make=make_online_job)
    run("tp2-sp-captured", make=make_captured_job)
    run("tp2-sp-unreduced", meddle=meddling.forget_gradients(stop=2))
    run("tp2-sp-unmarked", meddle=meddling.forget_norm_marks(stop=2))


def data_runs(run: Runs) -> None:
    run("dp2", **TRACED)
    run("dp2-full", **FULL)
    run("dp2-selective", **SELECTIVE)
    run("dp2-overlap", **OVERLAP)
    run("dp2-sft", make=make_sft_job)
    run("dp2-online", make=make_online_job)
    run("dp2-captured", make=make_captured_job)
    run("tp2-sp-to-dp2", after="tp2-sp-stopped")
    run("dp2-nan-activations", meddle=meddling.spoil_activations(SPOILED, rank=1), **IMPATIENT)
    run("dp2-unreduced", meddle=meddling.forget_gradients(stop=2))


def pipeline_runs(folder: Path) -> None:
    run = Runs(folder, PIPELINE)
    run("pp2", model="deep")
    run("pp2-full", model="deep", **FULL)
    run("pp2-selective", model="deep", **SELECTIVE)
    run("pp2-qwen2", model="qwen2")
    run("pp2-sft", make=make_sft_job)
    run("pp2-captured", make=make_captured_job)
    run("pp2-captured-stopped", make=make_captured_job, meddle=meddling.terminate_in(5, rank=1))
    run("pp2-captured-resumed", make=make_captured_job, after="pp2-captured-stopped")
    run("pp2-sft-stopped", make=make_sft_job, meddle=meddling.terminate_in(5, rank=1))
    run("pp2-sft-resumed", make=make_sft_job, after="pp2-sft-stopped")
    run("pp2-nan-norm", meddle=meddling.spoil_activations(SPOILED, rank=0), **IMPATIENT)
    run("pp2-stopped", model="deep", meddle=meddling.terminate_in(7, rank=1))
    run("pp2-resumed", model="deep", after="pp2-stopped")
    Runs(folder, UNEVEN)("pp2-uneven", model="deep")


def interleaved_runs(run: Runs) -> None:
    run("pp2-vpp2", model="deep")
    run("pp2-vpp2-full", model="deep", **FULL)
    run("pp2-vpp2-selective", model="deep", **SELECTIVE)
    run("pp2-vpp2-batched", model="deep", meddle=meddling.batch_messages(stop=2))


def context_runs(run: Runs) -> None:
    run("cp2")
    run("cp2-full", **FULL)
    run("cp2-selective", **SELECTIVE)
    run("cp2-qwen2", model="qwen2")
    run("cp2-sft", make=make_sft_job)
    run("cp2-online", make=make_online_job)
    run("cp2-captured", make=make_captured_job)
    run("cp2-nan-activations", meddle=meddling.spoil_activations(SPOILED, rank=1), **IMPATIENT)
    run("cp2-order", meddle=meddling.keep_gathered_order(stop=2))
    run("cp2-stopped", meddle=meddling.terminate_in(7, rank=1))
    run("cp2-resumed", after="cp2-stopped")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
