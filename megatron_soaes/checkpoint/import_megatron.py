"""From a Megatron-LM checkpoint directory to a checkpoint of our own."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_prep.tokenizer import load_tokenizer
from megatron_soaes import files
from megatron_soaes.checkpoint.directory import HF_FILES, TRACKER, iteration_directory
from megatron_soaes.checkpoint.hf_files import SafetensorsWriter, copy_other_files
from megatron_soaes.checkpoint.import_hf import ImportReport, import_hf
from megatron_soaes.checkpoint.megatron_directory import (
    MegatronCheckpoint,
    is_megatron_directory,
    open_megatron,
)
from megatron_soaes.checkpoint.model_weights import (
    Progress,
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
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.errors import UserError
from megatron_soaes.models.families import weight_table
from megatron_soaes.models.weights import slices
from megatron_soaes.recipe.megatron_args import (
    config_json,
    refuse_other_shape,
    shape_from_args,
)
from megatron_soaes.recipe.shapes import ModelShape, read_shape

LAYER_BY_LAYER = re.compile(r"^decoder\.layers\.\d+\.")
"""Keys of a checkpoint whose layers are not stacked (heterogeneous models)."""


@dataclass(frozen=True)
class MegatronModel:
    """The model of a Megatron-LM checkpoint as Hugging Face describes it."""

    shape: ModelShape
    config: dict[str, Any]
    """Content of config.json."""


def import_model(
    source: Path, out_root: Path, *, tokenizer: Path | None = None, dtype: torch.dtype | None = None
) -> ImportReport:
    """Import an HF directory, or a Megatron-LM checkpoint together with its HF tokenizer.

    Raises UserError as the two imports do, and when `tokenizer` is missing or not wanted.
    """
    if is_megatron_directory(source):
        if tokenizer is None:
            arguments = open_megatron(source).arguments
            used = [str(arguments.get(name)) for name in ("tokenizer_type", "tokenizer_model")]
            raise UserError(
                source, f"no tokenizer in a Megatron-LM checkpoint (the run used {' '.join(used)})",
                "the HF tokenizer it was trained with", "Give its folder with --tokenizer.",
            )  # fmt: skip
        return import_megatron(source, tokenizer, out_root, dtype=dtype)
    if tokenizer is not None:
        raise UserError(
            source, "no Megatron-LM checkpoint", "one beside --tokenizer",
            "Leave --tokenizer out: an HF directory has its own.",
        )  # fmt: skip
    return import_hf(source, out_root, dtype=dtype)


def import_megatron(
    megatron_dir: Path,
    tokenizer_dir: Path,
    out_root: Path,
    *,
    config: Path | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> ImportReport:
    """Write the model of a Megatron-LM torch_dist checkpoint as iteration 0 of a new checkpoint.

    `megatron_dir` is a run's folder (its newest iteration is taken) or one iteration. Each tensor
    keeps its dtype unless `dtype` is given. Rows of vocabulary padding and the state of optimizer,
    schedule and random streams are left behind. Memory is bounded as in `import_hf`. With `verify`
    the model that Megatron-Core builds from `args` and reads from `megatron_dir` must give the
    logits of `transformers` on the imported weights (with `dtype`, Megatron-Core reads the
    converted weights too). `out_root` appears whole at the end or not at all.
    Raises UserError when it exists, for a checkpoint that cannot be read or whose arguments we do
    not build (`open_megatron`, `describe_model`), and when weights or logits do not fit.
    """
    if out_root.exists():
        raise UserError(
            out_root, "something already there", "a path that does not exist",
            "Choose another path, or remove what is there.",
        )  # fmt: skip
    source = open_megatron(megatron_dir)
    model = describe_model(source, tokenizer_dir, config)
    shape = model.shape
    reader = TorchDistReader(source.directory)
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
            progress,
        )
        copy_other_files(tokenizer_dir, root / HF_FILES)
        files.write_json(root / HF_FILES / "config.json", model.config)
        files.write_text(root / TRACKER, "0\n")
        parity = None
        if verify:
            parity = _compare(target, target if dtype else source.directory, model)
    names = sorted({str(d).removeprefix("torch.") for d in dtypes.values()})
    return ImportReport(out_root, len(dtypes), written, names, _left_behind(source, shape), parity)


def describe_model(
    source: MegatronCheckpoint, tokenizer_dir: Path, config: Path | None = None
) -> MegatronModel:
    """The shape and the config.json of a Megatron-LM checkpoint.

    A config.json (`config`, or the one in `tokenizer_dir`) must describe the same model and is
    taken as it is; without one it is made from the arguments, and the vocabulary is what the
    tokenizer has. Raises UserError for arguments we do not build, a config.json of another model
    and a tokenizer that does not fit.
    """
    info, _ = load_tokenizer(tokenizer_dir, add_special_tokens=False)
    file = config or tokenizer_dir / "config.json"
    if config is None and not file.is_file():
        shape = shape_from_args(source.arguments, info.largest_id + 1, source.where)
        return MegatronModel(shape, config_json(shape, info.eod_id))
    known = read_shape(file)
    if info.largest_id >= known.vocab_size:
        raise UserError(
            info.path, f"token id {info.largest_id}", f"ids below vocab_size {known.vocab_size}",
            "Use the tokenizer that belongs to this model.",
        )  # fmt: skip
    shape = shape_from_args(source.arguments, known.vocab_size, source.where, known)
    refuse_other_shape(shape, known, file)
    content = json.loads(file.read_text(encoding="utf-8"))
    return MegatronModel(replace(shape, max_position=known.max_position), content)


def _refuse_layer_by_layer(reader: TorchDistReader) -> None:
    key = next((key for key in reader.shapes if LAYER_BY_LAYER.match(key)), None)
    if key is not None:
        raise UserError(
            f"{reader.directory}: {key}", "one tensor a layer", "all layers in one tensor",
            "Save it again without heterogeneous layers (hetereogenous_dist_checkpoint).",
        )  # fmt: skip


def _left_behind(source: MegatronCheckpoint, shape: ModelShape) -> list[str]:
    """What of the checkpoint the import does not take, in words."""
    left = []
    padding = int(source.arguments["padded_vocab_size"]) - shape.vocab_size
    if padding:
        left.append(f"{padding} rows of vocabulary padding")
    if source.has_optimizer:
        left.append("optimizer state")
    return left


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
