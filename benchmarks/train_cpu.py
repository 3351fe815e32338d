"""Training speed on a CPU: our step against a plain `transformers` loop, side by side in one run.

    python -m benchmarks.train_cpu [--steps 6] [--threads 2]

Both train the same Qwen2 shape from the same kind of weights on the same tokens with the same
micro-batches, AdamW (fused) and clipping, in turn, step by step, so that a change of the machine's
speed meets both. In bf16 the work is not equal: ours keeps fp32 main weights, gradients and
moments, `transformers` keeps everything in bf16. The share of the matmul rate counts model FLOPs
against a square product measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.accelerator.groups import Rendezvous, model_parallel, process_group
from megatron_soaes.data.sample import MicroBatch, Sample, collate
from megatron_soaes.models.build import dtype_named
from megatron_soaes.recipe.schema import CPTStage, Layout, ModelSource, Optimizer, Precision
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.training.engine import build_chunks, build_engine, build_options
from megatron_soaes.training.step import train_step
from megatron_soaes.training.telemetry import measured_matmul_rate

SEQUENCE = 512
BATCH = 2
SIZES = {
    "20M": {"layers": 8, "hidden": 384, "heads": 6, "kv_heads": 2, "ffn": 1024},
    "50M": {"layers": 10, "hidden": 576, "heads": 9, "kv_heads": 3, "ffn": 1536},
}
VOCABULARY = 16_384


@dataclass(frozen=True)
class Comparison:
    """Medians over the steps of one model in one dtype."""

    model: str
    dtype: str
    ours: float
    """Tokens/s."""
    peer: float
    """Tokens/s of the `transformers` loop."""
    ratio: float
    """Median of the ratios of neighbouring steps, ours over peer."""
    share: float
    """Our model FLOPs over the measured matmul rate."""


def compare(name: str, dtype: str, steps: int) -> Comparison:
    """Time both loops in turn; the first step of each is not counted."""
    shape = _shape(name)
    ours, peer = _our_step(shape, dtype), _peer_step(shape, dtype)
    tokens = BATCH * SEQUENCE
    rng = np.random.default_rng(0)
    times: list[tuple[float, float]] = []
    for step in range(steps + 1):
        text = rng.integers(0, VOCABULARY, (BATCH, SEQUENCE + 1))
        pair = (_seconds(ours, text), _seconds(peer, text))
        if step > 0:
            times.append(pair)
    mine = statistics.median(pair[0] for pair in times)
    rate = measured_matmul_rate(dtype_named(dtype))
    return Comparison(
        name,
        dtype,
        tokens / mine,
        tokens / statistics.median(pair[1] for pair in times),
        statistics.median(other / own for own, other in times),
        tokens / mine * shape.flops_per_token(SEQUENCE) / rate,
    )


def _shape(name: str) -> ModelShape:
    size = SIZES[name]
    return ModelShape(
        family="qwen2",
        head_dim=size["hidden"] // size["heads"],
        vocab_size=VOCABULARY,
        max_position=SEQUENCE,
        tied_embeddings=True,
        qkv_bias=True,
        qk_norm=False,
        norm_eps=1e-6,
        rope_theta=1e4,
        rope_scaling=None,
        **size,
    )


def _our_step(shape: ModelShape, dtype: str) -> Callable[[np.ndarray], None]:
    stage = CPTStage(
        name="bench",
        kind="cpt",
        blend="none",
        steps=1000,
        sequence_length=SEQUENCE,
        micro_batch_size=BATCH,
        global_batch_size=BATCH,
        precision=Precision.model_validate({"dtype": dtype}),
        optimizer=Optimizer(lr=1e-3),
    )
    options = build_options(shape, ModelSource(source=Path()), Layout(), stage.precision)
    chunks = build_chunks(shape, options)
    torch.manual_seed(0)
    for weight in chunks[0].parameters():
        torch.nn.init.normal_(weight, 0.0, 0.02) if weight.dim() > 1 else weight.data.fill_(1.0)
    engine = build_engine(shape, chunks, stage)

    def step(text: np.ndarray) -> None:
        train_step(engine, [_micro_batch(text)], BATCH, stop_here=False)

    return step


def _micro_batch(text: np.ndarray) -> MicroBatch:
    weights = np.ones(SEQUENCE + 1, dtype=np.float32)
    bounds = np.array([0, SEQUENCE + 1], dtype=np.int32)
    samples = [Sample(row, weights, bounds, 0) for row in text]
    return collate(samples, this_device().torch_device)


def _peer_step(shape: ModelShape, dtype: str) -> Callable[[np.ndarray], None]:
    config = transformers.Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.max_position,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = transformers.Qwen2ForCausalLM(config).to(dtype_named(dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(text: np.ndarray) -> None:
        tokens = torch.from_numpy(text)
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, shape.vocab_size).float(), tokens[:, 1:].reshape(-1)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _seconds(step: Callable[[np.ndarray], None], text: np.ndarray) -> float:
    start = time.perf_counter()
    step(text)
    return time.perf_counter() - start


def main() -> None:
    """Run every comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| model | dtype | ours, tokens/s | transformers | ratio | share of matmul rate |")
    print("| --- | --- | --- | --- | --- | --- |")
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        for name in arguments.models:
            for dtype in arguments.dtypes:
                c = compare(name, dtype, arguments.steps)
                print(
                    f"| {c.model} | {c.dtype} | {c.ours:,.0f} | {c.peer:,.0f} | {c.ratio:.2f} | "
                    f"{c.share:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
