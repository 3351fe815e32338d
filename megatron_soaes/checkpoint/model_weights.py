"""A model's weights in a distributed checkpoint: do they fit, reading one, writing them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.checkpoint.torch_dist import TorchDistReader, TorchDistWriter
from megatron_soaes.errors import UserError
from megatron_soaes.models.families import weight_table
from megatron_soaes.models.weights import VOCABULARY, Weight, extra_state_keys, slices
from megatron_soaes.recipe.shapes import ModelShape

MODEL_PREFIXES = ("decoder.", "embedding.", "output_layer.")
"""Tensors of the model; optimizer and random states in the same checkpoint begin otherwise."""


def check_weights(source: TorchDistReader, shape: ModelShape) -> None:
    """Raise UserError unless the checkpoint holds exactly the weights of a model of this shape."""
    table = {weight.key: weight for weight in weight_table(shape)}
    for key, weight in table.items():
        expected = weight.global_shape(shape)
        found = source.shapes.get(key)
        if found is None or not _fits(weight, found, expected):
            raise UserError(
                f"{source.directory}: {key}", f"shape {list(found)}" if found else "nothing",
                f"shape {list(expected)}, as config.json says",
                "Use the config.json of the model that was trained.",
            )  # fmt: skip
    for key in source.shapes:
        if key.startswith(MODEL_PREFIXES) and key not in table:
            raise UserError(
                f"{source.directory}: {key}", "a weight this model does not have",
                f"the weights of a {shape.family} model with the settings of config.json",
                "Use the config.json of the model that was trained.",
            )  # fmt: skip


def _fits(weight: Weight, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if weight.transform is VOCABULARY:
        return found[0] >= expected[0] and found[1:] == expected[1:]
    return found == expected


def read_weight(
    source: TorchDistReader, weight: Weight, shape: ModelShape, layer: int | None
) -> Tensor:
    """One weight (of one layer, when it is stacked), shape `weight.slice_shape(shape)`, on the CPU.

    Rows of vocabulary padding are not read.
    """
    sizes = weight.slice_shape(shape)
    if layer is None:
        return source.read_slice(weight.key, [0] * len(sizes), sizes)
    return source.read_slice(weight.key, [layer, *[0] * len(sizes)], [1, *sizes])[0]


def write_weights(
    target: Path,
    shape: ModelShape,
    weight_of: Callable[[Weight, int | None], Tensor],
    common: Mapping[str, Any],
    *,
    progress: Progress | None = None,
    prefix: str = "",
) -> int:
    """Write a checkpoint of weights alone into the folder `target`; returns the bytes written.

    `weight_of` gives one weight (of one layer, when it is stacked), shape
    `weight.slice_shape(shape)`; one at a time is in memory. `common` is what common.pt holds;
    keys begin with `prefix`. Extra states are there, and empty.
    """
    done = written = 0
    with TorchDistWriter(target, common) as checkpoint:
        for weight, layer in slices(weight_table(shape), range(shape.layers)):
            tensor = weight_of(weight, layer)
            offsets = [0] * tensor.dim()
            if layer is not None:
                tensor, offsets = tensor.unsqueeze(0), [layer, *offsets]
            checkpoint.write(prefix + weight.key, weight.global_shape(shape), offsets, tensor)
            done, written = done + tensor.numel(), written + tensor.nbytes
            if progress is not None:
                progress(done, shape.parameters)
        for key in extra_state_keys(shape):
            checkpoint.write_object(prefix + key, None)
    return written
