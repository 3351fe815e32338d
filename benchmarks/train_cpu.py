"""Training speed on a CPU: our step against a plain `transformers` loop, side by side in one run.

    python -m benchmarks.train_cpu [--steps 6] [--threads 2]

Both train the same Qwen2 shape on the same tokens with the same micro-batches, AdamW (fused) and
clipping, each in a process of its own, in turn, step by step, so that a change of the machine's
speed meets both. In bf16 the work is not equal: ours keeps fp32 main weights, gradients and
moments, `transformers` keeps everything in bf16. A third process runs the `transformers` loop with
the memory allocator set as ours sets it (`accelerator/allocator.py`), to show what of the ratio is
that setting. The share of the matmul rate counts model FLOPs against a square product measured in
the same process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection

import torch

from benchmarks.subject import ON_CPU, Subject
from benchmarks.training_step import our_step, transformers_step
from megatron_soaes.accelerator.allocator import keep_freed_memory
from megatron_soaes.models.build import dtype_named
from megatron_soaes.training.telemetry import measured_matmul_rate

CONTESTANTS = ("ours", "transformers", "transformers, our allocator")
HEAD = (
    "| model | dtype | ours, tokens/s | transformers | ratio | ratio, same allocator "
    "| share of matmul rate | peak GiB, ours and transformers |"
)


def contestant(name: str, subject: Subject, dtype: str, threads: int, pipe: Connection) -> None:
    """Do a step for each number received and send its seconds; None ends it with two figures."""
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        if name == "ours":
            step = stack.enter_context(our_step(subject, dtype))
        else:
            if name != "transformers":
                keep_freed_memory()
            step = transformers_step(subject, dtype)
        while (number := pipe.recv()) is not None:
            started = time.perf_counter()
            step(number)
            pipe.send(time.perf_counter() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        pipe.send((peak, measured_matmul_rate(dtype_named(dtype)) if name == "ours" else 0.0))


def compare(subject: Subject, dtype: str, steps: int, threads: int) -> str:
    """The table's row of one model in one dtype: medians over the steps after the warm-up."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in CONTESTANTS:
        pipes[name], theirs = context.Pipe()
        arguments = (name, subject, dtype, threads, theirs)
        context.Process(target=contestant, args=arguments, daemon=True).start()
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for number in range(subject.warm_up + steps):
        for name, pipe in pipes.items():
            pipe.send(number)
            seconds[name].append(pipe.recv())
    figures = {}
    for name, pipe in pipes.items():
        pipe.send(None)
        figures[name] = pipe.recv()
    ours, plain, kept = (times[subject.warm_up :] for times in seconds.values())
    tokens = subject.tokens_per_step
    speed = tokens / statistics.median(ours)
    share = speed * subject.shape.flops_per_token(subject.sequence_length) / figures["ours"][1]
    return (
        f"| {subject.name} | {dtype} | {speed:,.0f} | {tokens / statistics.median(plain):,.0f} "
        f"| {_ratio(plain, ours):.2f} | {_ratio(kept, ours):.2f} | {share:.0%} "
        f"| {figures['ours'][0]:.2f}, {figures['transformers'][0]:.2f} |"
    )


def _ratio(theirs: list[float], ours: list[float]) -> float:
    """Median of the ratios of neighbouring steps: how many times as fast ours is."""
    return statistics.median(other / own for own, other in zip(ours, theirs, strict=True))


def main() -> None:
    """Run every comparison and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    names = [subject.name for subject in ON_CPU]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    arguments = parser.parse_args()
    print(HEAD)
    print("| --- " * (HEAD.count("|") - 1) + "|")
    for subject in ON_CPU:
        if subject.name in arguments.models:
            for dtype in arguments.dtypes:
                row = compare(subject, dtype, arguments.steps, arguments.threads)
                print(row, flush=True)


if __name__ == "__main__":
    main()
