"""All runs on four processes: `python -m tests.training.four_processes FOLDER` is one rank."""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_soaes.accelerator.groups import (
    model_parallel,
    process_group,
    rendezvous_from_environment,
)
from megatron_soaes.recipe.training_settings import Layout
from tests.training.distilling import make_captured_job, make_online_job
from tests.training.two_processes import FULL, SELECTIVE, Runs


def main(folder: Path) -> None:
    with process_group(rendezvous_from_environment()):
        with model_parallel(tensor=2, pipeline=2):
            layout = Layout(tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True)
            _with_every_recompute(Runs(folder, layout), "tp2-pp2")
            Runs(folder, layout)("tp2-pp2-captured", model="deep", make=make_captured_job)
        with model_parallel(tensor=2, context=2):
            layout = Layout(tensor_parallel=2, context_parallel=2)
            _with_every_recompute(Runs(folder, layout), "tp2-cp2")
            Runs(folder, layout)("tp2-cp2-online", make=make_online_job)
        with model_parallel(pipeline=2, context=2):
            layout = Layout(pipeline_parallel=2, context_parallel=2)
            _with_every_recompute(Runs(folder, layout), "pp2-cp2")
            Runs(folder, layout)("pp2-cp2-captured", model="deep", make=make_captured_job)
        with model_parallel(pipeline=2):
            layout = Layout(pipeline_parallel=2, data_parallel=2)
            _with_every_recompute(Runs(folder, layout), "pp2-dp2")


def _with_every_recompute(run: Runs, name: str) -> None:
    run(name, model="deep")
    run(f"{name}-full", model="deep", **FULL)
    run(f"{name}-selective", model="deep", **SELECTIVE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
