"""From a Hugging Face directory to a Megatron-Core distributed checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_soaes import files
from megatron_soaes.checkpoint.directory import HF_FILES, TRACKER, iteration_directory
from megatron_soaes.checkpoint.hf_check import check_tensors
from megatron_soaes.checkpoint.hf_files import HFWeights, copy_other_files
from megatron_soaes.checkpoint.megatron_arguments import weights_state
from megatron_soaes.checkpoint.model_weights import write_weights
from megatron_soaes.checkpoint.parity import ParityReport, check_parity
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.errors import UserError
from megatron_soaes.models.families import weight_table
from megatron_soaes.models.weights import EMBEDDING, Weight
from megatron_soaes.recipe.shapes import ModelShape, read_shape


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    checkpoint: Path
    """Root of the checkpoint; its iteration is 0."""
    tensors: int
    bytes: int
    dtypes: list[str]
    skipped: list[str]
    """HF tensors that the checkpoint does not need: derived tables, a copy of a tied embedding."""
    parity: ParityReport | None
    """None when verification was switched off."""


def import_hf(
    hf_dir: Path,
    out_root: Path,
    *,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> ImportReport:
    """Write the model of an HF directory as a checkpoint that any tensor and pipeline layout loads.

    Each tensor keeps its dtype unless `dtype` is given. Memory is bounded by one layer of the
    largest weight (or the embedding), not by the model. With `verify`, logits must agree with
    `transformers` (`parity.check_parity`). `out_root` appears whole at the end or not at all.
    Raises UserError when it exists, when the directory is malformed and when the logits differ.
    """
    if out_root.exists():
        raise UserError(
            out_root, "something already there", "a path that does not exist",
            "Choose another path, or remove what is there.",
        )  # fmt: skip
    shape = read_shape(hf_dir / "config.json")
    source = HFWeights(hf_dir)
    table = weight_table(shape)
    skipped = check_tensors(source, shape, table)
    dtypes = {weight.key: dtype or _common_dtype(source, shape, weight) for weight in table}

    def read(weight: Weight, layer: int | None) -> Tensor:
        parts = [source.read(name) for name in weight.hf_shapes(shape, layer)]
        return weight.transform.join(shape, parts).to(dtypes[weight.key])

    with files.atomic_directory(out_root) as root:
        target = iteration_directory(root, 0)
        target.mkdir()
        common = weights_state(shape, out_root.resolve() / HF_FILES, dtypes[EMBEDDING])
        written = write_weights(target, shape, read, common, progress=progress)
        copy_other_files(hf_dir, root / HF_FILES)
        files.write_text(root / TRACKER, "0\n")
        parity = check_parity(hf_dir, target) if verify else None
    names = sorted({str(d).removeprefix("torch.") for d in dtypes.values()})
    tensors = len(source.tensors) - len(skipped)
    return ImportReport(out_root, tensors, written, names, skipped, parity)


def _common_dtype(source: HFWeights, shape: ModelShape, weight: Weight) -> torch.dtype:
    """The one dtype of all HF tensors of a weight, which the checkpoint stores as one tensor."""
    layers = range(shape.layers) if weight.stacked else [None]
    found = {n: source.tensors[n].dtype for i in layers for n in weight.hf_shapes(shape, i)}
    if len(set(found.values())) > 1:
        first, dtype = next(iter(found.items()))
        other, different = next((n, d) for n, d in found.items() if d != dtype)
        raise UserError(
            f"{source.tensors[other].file}: {other}", str(different), f"{dtype}, as {first} has",
            "Import with a dtype given: it converts all weights to that one.",
        )  # fmt: skip
    return next(iter(found.values()))
