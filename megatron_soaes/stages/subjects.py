"""Models to measure: a checkpoint in a layout, an HF directory, or what a server serves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from megatron.core.models.gpt import GPTModel

from megatron_soaes import files
from megatron_soaes.accelerator.device import this_device
from megatron_soaes.accelerator.groups import world_rank
from megatron_soaes.checkpoint import checksums, directory
from megatron_soaes.decoding.endpoint import EndpointGenerator
from megatron_soaes.decoding.lean import LeanGenerator, LeanModel
from megatron_soaes.decoding.megatron import MegatronGenerator
from megatron_soaes.decoding.prompts import load_tokenizer, text_of
from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.result import Model
from megatron_soaes.models.build import BuildOptions, dtype_named
from megatron_soaes.recipe.schema import ModelSource
from megatron_soaes.recipe.shapes import ModelShape, read_shape
from megatron_soaes.recipe.training_settings import Layout, Precision
from megatron_soaes.stages.measuring import Subject
from megatron_soaes.training.engine import build_options, load_model

UNKNOWN = "unknown"
"""The weights of a server."""
DtypeName = Literal["fp32", "bf16"]
SERVED = "the server's"


def checkpoint_model(name: str, root: Path, iteration: int) -> Model:
    """Which weights an iteration of a checkpoint root holds (collective).

    Their hash is made of the sums of its shards, which the save recorded; without them (an import)
    the first rank reads the files.
    """
    folder = directory.iteration_directory(root, iteration)
    box = [""]
    if world_rank() == 0:
        shards = sorted(folder.glob("*.distcp"))
        sums = checksums.recorded(folder) or checksums.sum_files(shards)
        names = [shard.name for shard in shards if shard.name in sums]
        box = [files.sha256_json({name: sums[name].sha256 for name in names})]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(box)
    return Model(name, str(folder), box[0], iteration)


def loaded_model(
    model: Model,
    hf_dir: Path,
    shape: ModelShape,
    chunks: Sequence[GPTModel],
    *,
    dtype: str,
    batch_size: int,
) -> Subject:
    """A model whose chunks hold its weights, in the layout that is active."""
    tokenizer = load_tokenizer(hf_dir)
    return Subject(
        model,
        MegatronGenerator(shape, chunks, text_of(tokenizer), batch_size),
        tokenizer,
        hf_dir,
        dtype,
        shape.max_position,
        identity=f"{model.weights_sha256} {dtype}",
    )


def checkpoint(
    root: Path, iteration: int | None, layout: Layout, dtype: DtypeName, batch_size: int
) -> Subject:
    """A checkpoint by itself, by default the newest, in the layout that is active (collective)."""
    hf_dir = root / directory.HF_FILES
    shape = read_shape(hf_dir / "config.json")
    options = options_of(hf_dir, shape, layout, dtype)
    chosen = directory.require_iteration(root, iteration)
    chunks = load_model(shape, options, root, chosen)
    # A stage keeps its checkpoints in STAGE/checkpoints.
    name = root.parent.name if root.name == "checkpoints" else root.name
    model = checkpoint_model(name, root, chosen)
    return loaded_model(model, hf_dir, shape, chunks, dtype=dtype, batch_size=batch_size)


def options_of(hf_dir: Path, shape: ModelShape, layout: Layout, dtype: DtypeName) -> BuildOptions:
    """How a checkpoint by itself is built: no recipe says what its vocabulary is padded to."""
    source = ModelSource(source=hf_dir, vocab_size_multiple=math.lcm(128, layout.tensor_parallel))
    return build_options(shape, source, layout, Precision(dtype=dtype))


def hf_weights(hf_dir: Path) -> Model:
    """Which weights an HF directory holds, from the hashes of its safetensors files.

    Raises UserError when there are none.
    """
    weights = {file.name: files.sha256_file(file) for file in sorted(hf_dir.glob("*.safetensors"))}
    if not weights:
        raise UserError(
            hf_dir, "no *.safetensors", "an HF directory with the weights of a model",
            "Correct the path.",
        )  # fmt: skip
    return Model(hf_dir.name, str(hf_dir), files.sha256_json(weights))


def hf_model(hf_dir: Path, dtype: DtypeName, batch_size: int) -> Subject:
    """An HF directory, on one device."""
    weights = hf_weights(hf_dir)
    model = LeanModel(hf_dir, dtype_named(dtype), this_device().torch_device)
    tokenizer = load_tokenizer(hf_dir)
    return Subject(
        weights,
        LeanGenerator(model, text_of(tokenizer), batch_size),
        tokenizer,
        hf_dir,
        dtype,
        model.max_position,
        identity=f"{weights.weights_sha256} {dtype}",
    )


def served_model(hf_dir: Path, url: str, name: str, batch_size: int) -> Subject:
    """What a server serves under a name, asked with the tokenizer in `hf_dir`."""
    tokenizer = load_tokenizer(hf_dir)

    def tokens_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    return Subject(
        Model(name, url, UNKNOWN),
        EndpointGenerator(url, name, tokens_of, concurrency=batch_size),
        tokenizer,
        hf_dir,
        SERVED,
        None,
        identity=f"{url} {name}",
    )
