"""The loss curve of a short training run, on this process's device, in a given arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from megatron.core.models.gpt import GPTModel

from megatron_soaes.accelerator.groups import (
    Rendezvous,
    model_parallel,
    process_group,
    seed_step,
)
from megatron_soaes.recipe.schema import CPTStage, ModelSource
from megatron_soaes.recipe.shapes import read_shape
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.engine import build_engine, build_options, load_model
from megatron_soaes.training.graphs import mlp_graphs
from megatron_soaes.training.objective import CrossEntropy
from megatron_soaes.training.step import train_step
from tests.gpu.material import MULTIPLE, learnable_batch

STEPS = 200
CPU_STEPS = 30
"""Of the curve in fp32: the first ones, for the sake of time."""
SAMPLES = 4
LENGTH = 256
ON_CPU = """
import sys
# Megatron-Core takes its optimizer and its norms from these where they are installed, whatever the
# device; a name without a module counts as not installed.
sys.modules.update(transformer_engine=None, apex=None)
from tests.gpu.curve import main
main()
"""
"""`python -c ON_CPU HF_DIR CHECKPOINT STEPS` prints the curve in fp32 as JSON."""


def train(
    hf_dir: Path,
    checkpoint: Path,
    precision: dict[str, Any],
    steps: int = STEPS,
    **settings: dict[str, Any],
) -> tuple[list[float], GPTModel]:
    """Losses of `steps` steps from `checkpoint`, and the trained model (groups must be active).

    `settings` are those of the stage beside its precision.
    """
    shape = read_shape(hf_dir / "config.json")
    stage = CPTStage.model_validate(
        {
            "name": "curve",
            "kind": "cpt",
            "blend": "synthetic",
            "steps": steps,
            "sequence_length": LENGTH,
            "global_batch_size": SAMPLES,
            "precision": precision,
            "schedule": {"shape": "constant"},
            **settings,
            "optimizer": {"lr": 1e-3} | settings.get("optimizer", {}),
        }
    )
    source = ModelSource(source=hf_dir, vocab_size_multiple=MULTIPLE)
    options = build_options(shape, source, Layout(), stage.precision, kernels=stage.kernels)
    engine = build_engine(shape, load_model(shape, options, checkpoint), stage, stage.steps)
    objective = CrossEntropy(shape.vocab_size, fused=stage.kernels.cross_entropy)
    losses = []
    with mlp_graphs(engine, stage, Layout()):
        for step in range(1, steps + 1):
            seed_step(1234, step)
            batches = learnable_batch(step, SAMPLES, LENGTH)
            losses.append(train_step(engine, objective, batches, SAMPLES, False).loss)
    return losses, engine.chunks[0]


def cpu_curve(hf_dir: Path, checkpoint: Path, steps: int = CPU_STEPS) -> list[float]:
    """The same in fp32 on the CPU, by the same code in a process that sees nothing of the GPU."""
    result = subprocess.run(
        [sys.executable, "-c", ON_CPU, str(hf_dir), str(checkpoint), str(steps)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    losses: list[float] = json.loads(result.stdout.splitlines()[-1])
    return losses


def main() -> None:
    """Print the losses in fp32."""
    hf_dir, checkpoint, steps = sys.argv[1:]
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        losses, _ = train(Path(hf_dir), Path(checkpoint), {"dtype": "fp32"}, int(steps))
    print(json.dumps(losses))
