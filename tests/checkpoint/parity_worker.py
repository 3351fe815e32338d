"""One rank of two: loads imported checkpoints sharded, compares logits, and saves them again.

Run as `python -m tests.checkpoint.parity_worker FOLDER`; FOLDER/<case> holds `hf`, `imported` and
`reference.pt`. Writes FOLDER/results.json and, for some cases, training-like checkpoints.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_soaes.accelerator.groups import (
    model_parallel,
    process_group,
    rendezvous_from_environment,
    world_rank,
)
from megatron_soaes.checkpoint.directory import HF_FILES, TRACKER, iteration_directory
from megatron_soaes.checkpoint.distributed import load_weights
from megatron_soaes.models.build import BuildOptions, build_model
from megatron_soaes.recipe.shapes import ModelShape, read_shape
from megatron_soaes.recipe.training_settings import Layout

PADDED = 512
"""Twice the vocabulary of the tiny models: the second tensor-parallel rank holds only padding, or
(for 256 tokens) its first row beyond the vocabulary."""
SAVED_AGAIN = ["qwen2-tied-kv2", "qwen3-untied-kv1"]


def tokens(vocab_size: int) -> Tensor:
    """The tokens compared, the last ones of the vocabulary among them; [2, 48]."""
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(vocab_size, (2, 48), generator=generator)
    drawn[:, :4] = torch.arange(vocab_size - 4, vocab_size)
    return drawn


def load(root: Path, shape: ModelShape, layout: Layout) -> GPTModel:
    model = build_model(shape, BuildOptions(torch.float32, PADDED, layout)).eval()
    load_weights(root, 0, [model])
    return model


def save(model: GPTModel, folder: Path, name: str) -> None:
    """As a training run does: at a later iteration, with optimizer state and padding in it."""
    target = iteration_directory(folder / name, 5)
    if world_rank() == 0:
        target.mkdir(parents=True)
        shutil.copytree(folder / "imported" / HF_FILES, folder / name / HF_FILES)
        (folder / name / TRACKER).write_text("5", encoding="utf-8")
    torch.distributed.barrier()
    moments = ShardedTensor.from_rank_offsets(
        "optimizer.state.exp_avg.decoder.final_layernorm.weight",
        torch.ones(4),
        (0, world_rank(), 2),
    )
    dist_checkpointing.save(
        {"model": model.sharded_state_dict(), "moments": moments, "iteration": 5}, str(target)
    )


@torch.no_grad()
def compare(folder: Path) -> dict[str, float]:
    """Largest difference of the tensor-parallel logits, largest padding weight (rank 0 alone)."""
    shape = read_shape(folder / "hf" / "config.json")
    model = load(folder / "imported", shape, Layout(tensor_parallel=2))
    given = tokens(shape.vocab_size)
    positions = torch.arange(given.shape[1]).expand_as(given)
    logits = model(given, positions, None, runtime_gather_output=True)[..., : shape.vocab_size]
    reference = torch.load(folder / "reference.pt")
    first = world_rank() * PADDED // 2
    weights = [model.shared_embedding_or_output_weight(), model.embedding.word_embeddings.weight]
    padding = torch.stack(
        [w[max(0, shape.vocab_size - first) :].abs().sum() for w in weights]
    ).sum()
    torch.distributed.all_reduce(padding)
    if folder.name in SAVED_AGAIN:
        save(model, folder, "tensor")
    return {
        "max_difference": (logits - reference).abs().max().item(),
        "padding": padding.item(),
    }


def main(folder: Path) -> None:
    with process_group(rendezvous_from_environment()):
        with model_parallel(tensor=2):
            cases = sorted(path.parent for path in folder.glob("*/reference.pt"))
            results = {case.name: compare(case) for case in cases}
        with model_parallel(pipeline=2):
            for name in SAVED_AGAIN:
                shape = read_shape(folder / name / "hf" / "config.json")
                model = load(folder / name / "imported", shape, Layout(pipeline_parallel=2))
                save(model, folder / name, "pipeline")
    if world_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
