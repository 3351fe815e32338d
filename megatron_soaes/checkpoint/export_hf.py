"""From a Megatron-Core distributed checkpoint to a Hugging Face directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_soaes import files
from megatron_soaes.checkpoint.directory import HF_FILES, iteration_directory, require_iteration
from megatron_soaes.checkpoint.hf_files import (
    TOKENIZER_CONFIG,
    SafetensorsWriter,
    copy_other_files,
    rewrite_for_transformers_4,
)
from megatron_soaes.checkpoint.model_weights import check_weights, read_weight
from megatron_soaes.checkpoint.parity import ParityReport, check_parity
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.errors import UserError
from megatron_soaes.models.families import hf_config, weight_table
from megatron_soaes.models.weights import EMBEDDING, slices
from megatron_soaes.recipe.shapes import ModelShape, shape_from_config

README = "README.md"


@dataclass(frozen=True)
class ExportReport:
    """What an export did."""

    directory: Path
    iteration: int
    files: list[str]
    """The safetensors files written."""
    tensors: int
    bytes: int
    parity: ParityReport | None
    """None when verification was switched off."""


def export_hf(
    checkpoint_root: Path,
    out_dir: Path,
    *,
    iteration: int | None = None,
    shard_bytes: int = 5_000_000_000,
    dtype: torch.dtype | None = None,
    readme: str | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a checkpoint (the newest, or `iteration`) as an HF directory that transformers loads.

    The checkpoint may come from an import or from training in any layout; optimizer state in it is
    not read and vocabulary padding is dropped. Each tensor keeps its dtype unless `dtype` is given.
    Memory is bounded by one layer of the largest weight, or the embedding. config.json, tokenizer,
    chat template and generation config come from the checkpoint's `hf` folder, written so that
    transformers 4 reads them too. `readme` becomes README.md; the base model's never comes along,
    because it describes another model. `out_dir` appears whole or not at all.
    Raises UserError when it exists, when the checkpoint does not fit its config.json, and, with
    `verify`, when the logits of `transformers` on the result differ from those of Megatron-Core.
    """
    if out_dir.exists():
        raise UserError(
            out_dir, "something already there", "a path that does not exist",
            "Choose another path, or remove what is there.",
        )  # fmt: skip
    iteration = require_iteration(checkpoint_root, iteration)
    source = TorchDistReader(iteration_directory(checkpoint_root, iteration))
    config, shape = _read_config(checkpoint_root / HF_FILES / "config.json")
    table = weight_table(shape)
    check_weights(source, shape)
    dtypes = {weight.key: dtype or source.dtype(weight.key) for weight in table}
    with files.atomic_directory(out_dir) as target:
        _copy_files(checkpoint_root / HF_FILES, target, readme)
        main_dtype = str(dtypes[EMBEDDING]).removeprefix("torch.")
        files.write_json(target / "config.json", hf_config(shape, config, main_dtype))
        plan = {
            name: (part, dtypes[weight.key])
            for weight, layer in slices(table, range(shape.layers))
            for name, part in weight.hf_shapes(shape, layer).items()
        }
        writer = SafetensorsWriter(target, plan, shard_bytes)
        written = _copy_weights(source, writer, shape, dtypes, progress)
        parity = check_parity(target, source.directory) if verify else None
    return ExportReport(out_dir, iteration, writer.files, len(plan), written, parity)


def _copy_files(hf_files: Path, target: Path, readme: str | None) -> None:
    copy_other_files(hf_files, target)
    rewrite_for_transformers_4(target / TOKENIZER_CONFIG)
    (target / README).unlink(missing_ok=True)
    if readme is not None:
        files.write_text(target / README, readme)


def _copy_weights(
    source: TorchDistReader,
    writer: SafetensorsWriter,
    shape: ModelShape,
    dtypes: dict[str, torch.dtype],
    progress: Progress | None,
) -> int:
    """Write every tensor of the model; returns the bytes written."""
    done = written = 0
    for weight, layer in slices(weight_table(shape), range(shape.layers)):
        tensor = read_weight(source, weight, shape, layer)
        parts = weight.transform.split(shape, tensor.to(dtypes[weight.key]))
        for name, part in zip(weight.hf_shapes(shape, layer), parts, strict=True):
            writer.write(name, part)
            done, written = done + part.numel(), written + part.nbytes
        if progress is not None:
            progress(done, shape.parameters)
    writer.close()
    return written


def _read_config(file: Path) -> tuple[dict[str, object], ModelShape]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            file, f"no readable config.json ({error})", "the one of the model that was imported",
            "Copy config.json and the tokenizer files of the base model there.",
        ) from None  # fmt: skip
    return config, shape_from_config(config, file)
