"""From a checkpoint of our own to one that NeMo 2.7.x loads; NeMo is not needed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from megatron_soaes import files
from megatron_soaes.checkpoint.directory import HF_FILES, iteration_directory, require_iteration
from megatron_soaes.checkpoint.hf_files import (
    TOKENIZER_CONFIG,
    copy_other_files,
    rewrite_for_transformers_4,
)
from megatron_soaes.checkpoint.import_torch_dist import refuse_existing
from megatron_soaes.checkpoint.model_weights import (
    check_weights,
    read_weight,
    write_weights,
)
from megatron_soaes.checkpoint.nemo_directory import (
    ARTIFACTS,
    CONTEXT,
    GENERATION_CONFIG,
    IO,
    KEY_PREFIX,
    WEIGHTS,
    open_nemo,
)
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.errors import UserError
from megatron_soaes.export.nemo_context import TOKENIZER, io_json
from megatron_soaes.models.families import weight_table
from megatron_soaes.models.weights import EMBEDDING, OUTPUT, Weight
from megatron_soaes.recipe.shapes import ModelShape, read_shape

UNTIED_FAMILIES = ("qwen2",)
"""Families whose importer and exporter in NeMo 2.7 know no tied embeddings."""
NOT_TOKENIZER = ("config.json", "README.md", GENERATION_CONFIG)
"""Files of the model that have another place in NeMo's context, or none."""


COMMON: dict[str, object] = {"state_dict": {}}
"""What common.pt must hold when nothing but weights is saved."""


@dataclass(frozen=True)
class NemoExportReport:
    """What an export did."""

    directory: Path
    iteration: int
    tensors: int
    bytes: int
    dtype: str
    notes: list[str]
    """How the result differs from the model, in words."""


def export_nemo(
    checkpoint_root: Path,
    out_dir: Path,
    *,
    iteration: int | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> NemoExportReport:
    """Write a checkpoint (the newest, or `iteration`) as a NeMo 2 checkpoint directory.

    The weights are copied bit for bit, or converted when `dtype` is given, under the names that
    NeMo gives them; optimizer state and vocabulary padding stay behind. A tied output layer that
    the family's NeMo classes do not know is written out in full. Memory is bounded by one layer of
    the largest weight, or the embedding. `out_dir` appears whole or not at all.
    Raises UserError when it exists, when the checkpoint does not fit its config.json, when its
    tensors have several dtypes, and for a model that NeMo 2.7 does not describe.
    """
    refuse_existing(out_dir)
    iteration = require_iteration(checkpoint_root, iteration)
    source = TorchDistReader(iteration_directory(checkpoint_root, iteration))
    hf_files = checkpoint_root / HF_FILES
    shape = read_shape(hf_files / "config.json")
    check_weights(source, shape)
    written_shape = _nemo_shape(shape)
    dtype = dtype or _only_dtype(source, shape)
    has_generation_config = (hf_files / GENERATION_CONFIG).is_file()
    context = io_json(written_shape, dtype, generation_config=has_generation_config)
    table = {weight.key: weight for weight in weight_table(shape)}

    def read(weight: Weight, layer: int | None) -> Tensor:
        tied = weight.key == OUTPUT and shape.tied_embeddings
        return read_weight(source, table[EMBEDDING] if tied else weight, shape, layer).to(dtype)

    with files.atomic_directory(out_dir) as target:
        (target / WEIGHTS).mkdir()
        written = write_weights(
            target / WEIGHTS, written_shape, read, COMMON, progress=progress, prefix=KEY_PREFIX
        )
        files.write_json(target / CONTEXT / IO, context)
        _copy_tokenizer(hf_files, target / CONTEXT / TOKENIZER)
        _copy_generation_config(hf_files, target / CONTEXT / ARTIFACTS)
        _require_same_shape(target, written_shape)
    return NemoExportReport(
        out_dir,
        iteration,
        len(weight_table(written_shape)),
        written,
        str(dtype).removeprefix("torch."),
        _notes(shape, written_shape),
    )


def _nemo_shape(shape: ModelShape) -> ModelShape:
    """The shape that NeMo holds the model as."""
    if shape.family in UNTIED_FAMILIES:
        return replace(shape, tied_embeddings=False)
    return shape


def _notes(shape: ModelShape, written: ModelShape) -> list[str]:
    if shape.tied_embeddings == written.tied_embeddings:
        return []
    rows = f"{shape.vocab_size} x {shape.hidden}"
    return [f"output layer ({rows}) written out: NeMo 2.7 has no tied {shape.family} models"]


def _only_dtype(source: TorchDistReader, shape: ModelShape) -> torch.dtype:
    """The dtype of all weights: NeMo's configuration names one."""
    dtype = source.dtype(EMBEDDING)
    for weight in weight_table(shape):
        if source.dtype(weight.key) != dtype:
            raise UserError(
                f"{source.directory}: {weight.key}", str(source.dtype(weight.key)),
                f"{dtype}, as {EMBEDDING} has, because a NeMo model has one dtype",
                "Give the dtype to convert all weights to.",
            )  # fmt: skip
    return dtype


def _copy_tokenizer(hf_files: Path, target: Path) -> None:
    copy_other_files(hf_files, target)
    rewrite_for_transformers_4(target / TOKENIZER_CONFIG)
    for name in NOT_TOKENIZER:
        (target / name).unlink(missing_ok=True)


def _copy_generation_config(hf_files: Path, target: Path) -> None:
    if (hf_files / GENERATION_CONFIG).is_file():
        target.mkdir()
        shutil.copy(hf_files / GENERATION_CONFIG, target)


def _require_same_shape(nemo_dir: Path, shape: ModelShape) -> None:
    """What was written must describe the model, whatever else NeMo makes of it."""
    found = open_nemo(nemo_dir).shape(shape.vocab_size)
    if found != shape:
        raise RuntimeError(f"io.json describes {found}, the model is {shape}")
