"""Everything on two processes: `python -m tests.decoding.two_processes MODELS OUT` is one rank.

Each rank leaves OUT/LAYOUT-MODEL-RANK.json, so that both can be seen to know all results.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import torch

from megatron_soaes.accelerator.groups import (
    model_parallel,
    process_group,
    rendezvous_from_environment,
    world_rank,
)
from megatron_soaes.decoding.answers import answer
from megatron_soaes.decoding.megatron import MegatronGenerator
from megatron_soaes.errors import UserError
from megatron_soaes.files import write_json
from megatron_soaes.models.build import BuildOptions, build_model
from megatron_soaes.recipe.shapes import read_shape
from megatron_soaes.recipe.training_settings import Layout
from tests.decoding.material import (
    GREEDY,
    MODELS,
    PROMPTS,
    REQUESTS,
    SAMPLED,
    megatron_generator,
    text_of,
)


def main(models: Path, out: Path) -> None:
    with process_group(rendezvous_from_environment()):
        with model_parallel(tensor=2):
            generate_all(models, out, "tp2", Layout(tensor_parallel=2))
            refuse(models, out, Layout(tensor_parallel=2, sequence_parallel=True))
        with model_parallel(pipeline=2):
            generate_all(models, out, "pp2", Layout(pipeline_parallel=2))
        with model_parallel():
            generate_all(models, out, "dp2", Layout(data_parallel=2))
            keep_answers(models, out)
        with model_parallel(pipeline=2, virtual_pipeline=2):
            refuse(models, out, Layout(pipeline_parallel=2, virtual_pipeline=2))
        with model_parallel(context=2):
            refuse(models, out, Layout(context_parallel=2))


def generate_all(models: Path, out: Path, name: str, layout: Layout) -> None:
    for model in MODELS:
        generator = megatron_generator(models, model, layout)
        results = {
            "greedy": [asdict(one) for one in generator.generate(PROMPTS, GREEDY)],
            "sampled": [asdict(one) for one in generator.generate(PROMPTS, SAMPLED)],
            "likelihoods": generator.log_likelihoods(REQUESTS),
            "none": generator.generate([], GREEDY),
        }
        write_json(out / f"{name}-{model}-{world_rank()}.json", results)


def keep_answers(models: Path, out: Path) -> None:
    """Ask half, then everything; each rank names a store of its own."""
    generator = megatron_generator(models, "qwen2", Layout(data_parallel=2))
    store = out / f"answers-{world_rank()}.jsonl"
    answer(generator, PROMPTS[:4], GREEDY, store, "tiny", at_once=3)
    found = answer(generator, PROMPTS, GREEDY, store, "tiny", at_once=3)
    write_json(out / f"answers-{world_rank()}.json", [asdict(one) for one in found])


def refuse(models: Path, out: Path, layout: Layout) -> None:
    """Leave what a generator says about a layout that it does not support."""
    shape = read_shape(models / "qwen2" / "hf" / "config.json")
    options = BuildOptions(torch.float32, shape.padded_vocab_size(128), layout)
    virtual = layout.virtual_pipeline
    stages = range(virtual) if virtual > 1 else [None]
    chunks = [build_model(shape, options, stage) for stage in stages]
    try:
        MegatronGenerator(shape, chunks, text_of)
    except UserError as error:
        write_json(out / f"refused-{error.where}-{world_rank()}.json", str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
