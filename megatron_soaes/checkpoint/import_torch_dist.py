"""What every import from another program's torch_dist checkpoint does, whoever describes it."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_prep.tokenizer import load_tokenizer
from megatron_soaes import files
from megatron_soaes.checkpoint.directory import HF_FILES, TRACKER, iteration_directory
from megatron_soaes.checkpoint.hf_files import SafetensorsWriter, copy_other_files
from megatron_soaes.checkpoint.import_hf import ImportReport
from megatron_soaes.checkpoint.megatron_arguments import weights_state
from megatron_soaes.checkpoint.model_weights import (
    check_weights,
    read_weight,
    write_weights,
)
from megatron_soaes.checkpoint.parity import (
    MODEL_BYTES,
    ParityReport,
    check_parity,
    sample_layers,
)
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.errors import UserError
from megatron_soaes.models.families import weight_table
from megatron_soaes.models.weights import EMBEDDING, slices
from megatron_soaes.recipe.megatron_shapes import config_json, refuse_other_shape
from megatron_soaes.recipe.shapes import ModelShape, read_shape

LAYER_BY_LAYER = re.compile(r"^decoder\.layers\.\d+\.")
"""Keys of a checkpoint whose layers are not stacked (heterogeneous models)."""

ShapeOf = Callable[[int, ModelShape | None], ModelShape]
"""The shape that a checkpoint's own description gives, from the number of token ids and the shape
in a config.json of the same model, if there is one."""


@dataclass(frozen=True)
class MegatronModel:
    """The model of another program's checkpoint as Hugging Face describes it."""

    shape: ModelShape
    config: dict[str, Any]
    """Content of config.json."""
    tokenizer: Path
    """Folder of the tokenizer."""


def describe(shape_of: ShapeOf, tokenizer_dir: Path, config: Path | None = None) -> MegatronModel:
    """The shape and the config.json of a checkpoint.

    A config.json (`config`, or the one in `tokenizer_dir`) must describe the same model and is
    taken as it is; without one it is made from the shape, and the vocabulary is what the tokenizer
    has unless the checkpoint knows better. Raises UserError for a config.json of another model and
    for a tokenizer that does not fit.
    """
    info, _ = load_tokenizer(tokenizer_dir, add_special_tokens=False)
    file = config or tokenizer_dir / "config.json"
    known = read_shape(file) if config or file.is_file() else None
    shape = shape_of(known.vocab_size if known else info.largest_id + 1, known)
    vocab_size = (known or shape).vocab_size
    if info.largest_id >= vocab_size:
        raise UserError(
            info.path, f"token id {info.largest_id}", f"ids below vocab_size {vocab_size}",
            "Use the tokenizer that belongs to this model.",
        )  # fmt: skip
    if known is None:
        return MegatronModel(shape, config_json(shape, info.eod_id), tokenizer_dir)
    refuse_other_shape(shape, known, file)
    content = json.loads(file.read_text(encoding="utf-8"))
    shape = replace(shape, max_position=known.max_position)
    return MegatronModel(shape, content, tokenizer_dir)


def write_import(
    reader: TorchDistReader,
    model: MegatronModel,
    out_root: Path,
    *,
    dtype: torch.dtype | None,
    verify: bool,
    compared: Path | None = None,
    extra_files: Sequence[Path] = (),
    has_optimizer: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Write the model in `reader` as iteration 0 of a new checkpoint at `out_root`.

    Each tensor keeps its dtype unless `dtype` is given; rows of vocabulary padding are left behind,
    and optimizer state if the source `has_optimizer`. Memory is bounded as in `import_hf`. With
    `verify` the logits of Megatron-Core on the checkpoint folder `compared`, by default the import,
    must be those of `transformers` on the imported weights. `extra_files` are copied beside
    config.json. Raises UserError for weights that do not fit and logits that differ; then nothing
    is left.
    """
    shape = model.shape
    _refuse_layer_by_layer(reader)
    check_weights(reader, shape)
    dtypes = {weight.key: dtype or reader.dtype(weight.key) for weight in weight_table(shape)}
    with files.atomic_directory(out_root) as root:
        target = iteration_directory(root, 0)
        target.mkdir()
        written = write_weights(
            target,
            shape,
            lambda weight, layer: read_weight(reader, weight, shape, layer).to(dtypes[weight.key]),
            weights_state(shape, out_root.resolve() / HF_FILES, dtypes[EMBEDDING]),
            progress=progress,
        )
        copy_other_files(model.tokenizer, root / HF_FILES)
        for file in extra_files:
            shutil.copy(file, root / HF_FILES)
        files.write_json(root / HF_FILES / "config.json", model.config)
        files.write_text(root / TRACKER, "0\n")
        parity = _compare(target, compared or target, model) if verify else None
    names = sorted({str(d).removeprefix("torch.") for d in dtypes.values()})
    return ImportReport(
        out_root, len(dtypes), written, names, _left_behind(reader, shape, has_optimizer), parity
    )


def refuse_existing(out_root: Path) -> None:
    """Raise UserError when there is something at `out_root` already."""
    if out_root.exists():
        raise UserError(
            out_root, "something already there", "a path that does not exist",
            "Choose another path, or remove what is there.",
        )  # fmt: skip


def _left_behind(reader: TorchDistReader, shape: ModelShape, has_optimizer: bool) -> list[str]:
    """What of the checkpoint the import does not take, in words."""
    padding = reader.shapes[EMBEDDING][0] - shape.vocab_size
    left = [f"{padding} rows of vocabulary padding"] if padding else []
    return [*left, "optimizer state"] if has_optimizer else left


def _refuse_layer_by_layer(reader: TorchDistReader) -> None:
    key = next((key for key in reader.shapes if LAYER_BY_LAYER.match(key)), None)
    if key is not None:
        raise UserError(
            f"{reader.directory}: {key}", "one tensor a layer", "all layers in one tensor",
            "Save it again without heterogeneous layers (hetereogenous_dist_checkpoint).",
        )  # fmt: skip


def _compare(imported: Path, checkpoint: Path, model: MegatronModel) -> ParityReport:
    """Compare `checkpoint` in Megatron-Core with `imported` in transformers.

    Only the layers that the gate looks at are written as HF weights, beside the import.
    """
    with tempfile.TemporaryDirectory(prefix=".parity-", dir=imported.parent) as folder:
        hf_dir = Path(folder)
        files.write_json(hf_dir / "config.json", model.config)
        layers = sample_layers(model.shape, MODEL_BYTES)
        _write_hf_layers(TorchDistReader(imported), model.shape, layers, hf_dir)
        return check_parity(hf_dir, checkpoint)


def _write_hf_layers(
    source: TorchDistReader, shape: ModelShape, layers: Sequence[int], hf_dir: Path
) -> None:
    table = weight_table(shape)
    plan = {
        name: (part, source.dtype(weight.key))
        for weight, layer in slices(table, layers)
        for name, part in weight.hf_shapes(shape, layer).items()
    }
    writer = SafetensorsWriter(hf_dir, plan, shard_bytes=2 * MODEL_BYTES)
    for weight, layer in slices(table, layers):
        parts = weight.transform.split(shape, read_weight(source, weight, shape, layer))
        for name, part in zip(weight.hf_shapes(shape, layer), parts, strict=True):
            writer.write(name, part)
    writer.close()
