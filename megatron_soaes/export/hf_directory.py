"""What every HF directory that is written from a `Source` has in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from megatron_soaes.checkpoint.hf_files import (
    TOKENIZER_CONFIG,
    SafetensorsWriter,
    copy_other_files,
    rewrite_for_transformers_4,
)
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.export.source import Source
from megatron_soaes.models.families import weight_table
from megatron_soaes.models.weights import slices

SHARD_BYTES = 5_000_000_000
Shape = tuple[int, ...]


def copy_model_files(source: Source, directory: Path) -> None:
    """Tokenizer, chat template and generation config, as transformers 4 reads them too.

    README.md of the source stays behind: it describes another model.
    """
    copy_other_files(source.hf_files, directory)
    rewrite_for_transformers_4(directory / TOKENIZER_CONFIG)
    (directory / "README.md").unlink(missing_ok=True)


def tensor_shapes(source: Source) -> dict[str, Shape]:
    """Every tensor of the model by its HF name, in forward order."""
    return {
        name: shape
        for weight, layer in slices(weight_table(source.shape), range(source.shape.layers))
        for name, shape in weight.hf_shapes(source.shape, layer).items()
    }


def write_tensors(
    source: Source,
    directory: Path,
    plan: Mapping[str, tuple[Shape, torch.dtype]],
    convert: Callable[[str, Tensor], Tensor],
    *,
    first: Mapping[str, Tensor],
    progress: Progress | None,
) -> None:
    """Write safetensors: `first`, then the model's tensors, each as `convert(name, tensor)` gives.

    `plan` has the shape and dtype of all of them, in this order. Memory is bounded by a layer or a
    vocabulary matrix.
    """
    writer = SafetensorsWriter(directory, dict(plan), SHARD_BYTES)
    for name, tensor in first.items():
        writer.write(name, tensor)
    total = sum(math.prod(plan[name][0]) for name in plan if name not in first)
    done = 0
    for name, tensor in _tensors(source):
        converted = convert(name, tensor)
        writer.write(name, converted)
        done += converted.numel()
        if progress is not None:
            progress(done, total)
    writer.close()


def _tensors(source: Source) -> Iterator[tuple[str, Tensor]]:
    """In forward order; a layer is read once."""
    current: tuple[int, dict[str, Tensor]] | None = None
    for weight, layer in slices(weight_table(source.shape), range(source.shape.layers)):
        for name in weight.hf_shapes(source.shape, layer):
            if layer is None:
                current = None
                yield name, torch.cat([block for _, block in source.blocks(name)])
                continue
            if current is None or current[0] != layer:
                current = layer, source.layer(layer)
            yield name, current[1][name]
