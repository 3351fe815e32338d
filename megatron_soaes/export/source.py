"""One interface over what an export starts from: an HF directory or a Megatron checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import safe_open
from torch import Tensor

from megatron_soaes.checkpoint.hf_check import check_tensors
from megatron_soaes.checkpoint.hf_files import HFWeights
from megatron_soaes.errors import UserError
from megatron_soaes.models.families import weight_table
from megatron_soaes.recipe.shapes import ModelShape, read_shape

BLOCK_BYTES = 32 * 2**20
"""About how much of a vocabulary matrix is in memory at a time."""


class Source(Protocol):
    """A model, read as HF tensors in their stored dtypes; what is read may be read by threads."""

    shape: ModelShape
    config: dict[str, Any]
    """Parsed config.json."""
    hf_files: Path
    """Folder of config.json, tokenizer and generation config."""

    def layer(self, index: int) -> dict[str, Tensor]:
        """The tensors of one layer, by HF name."""
        ...

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """A tensor outside the layers: pairs of a first row and the rows from it on, in order."""
        ...


def open_source(path: Path, iteration: int | None = None) -> Source:
    """The model in an HF directory, or in a folder of checkpoints (by default the newest).

    A single `iter_` folder is taken too, if the model's `hf` folder is beside it. Only headers are
    read. Raises UserError when there is no model, when its weights do not fit its config.json, and
    for an `iteration` of an HF directory.
    """
    if not path.is_dir():
        raise UserError(
            path, "no such directory", "an HF directory or a folder of checkpoints",
            "Check the path.",
        )  # fmt: skip
    if not (path / "config.json").is_file():
        # Megatron-Core takes seconds and 150 MB to import; an HF directory needs none of it.
        from megatron_soaes.export.megatron_source import MegatronSource

        return MegatronSource(path, iteration)
    if iteration is not None:
        raise UserError(
            path, f"an HF directory and iteration {iteration}", "a folder of checkpoints",
            "Leave the iteration out, or give the checkpoints.",
        )  # fmt: skip
    return HFSource(path)


class HFSource:
    """An HF directory."""

    def __init__(self, directory: Path) -> None:
        self.hf_files = directory
        self.shape = read_shape(directory / "config.json")
        self.config = read_json(directory / "config.json")
        self._weights = HFWeights(directory)
        check_tensors(self._weights, self.shape, weight_table(self.shape))

    def layer(self, index: int) -> dict[str, Tensor]:
        names = (
            name
            for weight in weight_table(self.shape)
            if weight.stacked
            for name in weight.hf_shapes(self.shape, index)
        )
        return {name: self._weights.read(name) for name in names}

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        stored = self._weights.tensors[name]
        rows = max(1, BLOCK_BYTES * stored.shape[0] // stored.nbytes)
        for first in range(0, stored.shape[0], rows):
            # Opened anew for each block: a mapped page counts as memory until its file is closed.
            with safe_open(stored.file, framework="pt") as opened:
                yield first, cast(Tensor, opened.get_slice(name)[first : first + rows])


def stored_dtype(tensor: Tensor, dtype: torch.dtype, where: object) -> Tensor:
    """`tensor` in `dtype`; raises UserError when a value does not fit, which fp16 makes likely."""
    if tensor.dtype == dtype:
        return tensor
    converted = tensor.to(dtype)
    if not torch.isfinite(converted).all():
        raise UserError(
            where, f"values up to {tensor.abs().max().item():g}",
            f"values that {dtype} holds (up to {torch.finfo(dtype).max:g})", "Export as bf16.",
        )  # fmt: skip
    return converted


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object."""
    return cast(dict[str, Any], json.loads(file.read_text(encoding="utf-8")))
