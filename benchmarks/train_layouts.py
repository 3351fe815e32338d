"""What each parallel layout costs against one process on the same cores.

    python -m benchmarks.train_layouts [--steps 4] [--rounds 2]

Every layout trains the same model (8 layers, hidden 384, vocabulary 8192, fp32) on 8 windows of 512
tokens a step, micro-batch 1; processes x threads is the number of cores. Layouts take turns in
`rounds`, so that a change of the machine's speed meets all of them; the ratio is that of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.subject import qwen2
from megatron_soaes.accelerator.launch import launch
from megatron_soaes.recipe.training_settings import Layout

if TYPE_CHECKING:
    from megatron_soaes.data.sample import MicroBatch
    from megatron_soaes.training.engine import Engine

SEQUENCE = 512
GLOBAL_BATCH = 8
VOCABULARY = 8192
LAYOUTS = {
    "one process": Layout(),
    "DP2": Layout(data_parallel=2),
    "TP2": Layout(tensor_parallel=2),
    "TP2 + SP": Layout(tensor_parallel=2, sequence_parallel=True),
    "PP2": Layout(pipeline_parallel=2),
    "PP2, 2 virtual stages": Layout(pipeline_parallel=2, virtual_pipeline=2),
    "CP2": Layout(context_parallel=2),
}


def time_steps(layout: Layout, steps: int) -> list[float]:
    """Seconds of each step on this rank, the first not counted (collective)."""
    from megatron_soaes.accelerator.groups import process_group, rendezvous_from_environment
    from megatron_soaes.training.engine import layout_groups
    from megatron_soaes.training.objective import CrossEntropy
    from megatron_soaes.training.step import train_step

    seconds = []
    with process_group(rendezvous_from_environment()), layout_groups(layout):
        engine, objective = random_engine(layout), CrossEntropy(VOCABULARY)
        for step in range(steps + 1):
            batches = random_batches(layout, step)
            torch.distributed.barrier()
            start = time.perf_counter()
            train_step(engine, objective, batches, GLOBAL_BATCH, stop_here=False)
            seconds.append(time.perf_counter() - start)
    return seconds[1:]


def random_engine(layout: Layout) -> Engine:
    """This rank's part of the model, in the groups of `layout`."""
    from megatron_soaes.recipe.schema import CPTStage, ModelSource
    from megatron_soaes.recipe.training_settings import Precision
    from megatron_soaes.training.engine import build_chunks, build_engine, build_options

    shape = qwen2(
        VOCABULARY, layers=8, hidden=384, heads=6, kv_heads=2, ffn=1024, tied_embeddings=False
    )
    stage = CPTStage(
        name="bench", kind="cpt", blend="none", steps=1000, sequence_length=SEQUENCE,
        global_batch_size=GLOBAL_BATCH, precision=Precision(dtype="fp32"),
    )  # fmt: skip
    options = build_options(shape, ModelSource(source=Path()), layout, stage.precision)
    chunks = build_chunks(shape, options)
    for chunk in chunks:
        for weight in chunk.parameters():
            torch.nn.init.normal_(weight, 0.0, 0.02)
    return build_engine(shape, chunks, stage, stage.steps)


def random_batches(layout: Layout, step: int) -> list[MicroBatch]:
    """One window in each; a function of `step`."""
    from megatron_soaes.accelerator.device import this_device
    from megatron_soaes.data.sample import Sample, collate
    from megatron_soaes.recipe.fp8 import filling_of

    size = (GLOBAL_BATCH // layout.data_parallel, SEQUENCE + 1)
    weights = np.ones(SEQUENCE + 1, dtype=np.float32)
    bounds = np.array([0, SEQUENCE + 1], dtype=np.int32)
    device, filling = this_device().torch_device, filling_of(layout)
    return [
        collate([Sample(text, weights, bounds, 0)], device, filling)
        for text in np.random.default_rng(step).integers(0, VOCABULARY, size)
    ]


def main() -> None:
    """Run all layouts in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for name, layout in LAYOUTS.items():
                result = Path(folder) / "seconds.json"
                rank = [layout.model_dump_json(), str(arguments.steps), str(result)]
                code = launch("benchmarks.train_layouts", rank, layout.processes, Path(folder))
                if code:
                    sys.exit(code)
                times[name] += json.loads(result.read_text(encoding="utf-8"))
    tokens = GLOBAL_BATCH * SEQUENCE
    alone = statistics.median(times["one process"])
    print("| layout | tokens/s | against one process |")
    print("| --- | --- | --- |")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"| {name} | {tokens / median:,.0f} | {alone / median:.2f} |")


def rank_main(layout: str, steps: str, result: str) -> None:
    """One rank of one layout; rank 0 leaves its times in a file."""
    seconds = time_steps(Layout.model_validate_json(layout), int(steps))
    if os.environ["RANK"] == "0":
        Path(result).write_text(json.dumps(seconds), encoding="utf-8")


if __name__ == "__main__":
    if "RANK" in os.environ:
        rank_main(*sys.argv[1:])
    else:
        main()
