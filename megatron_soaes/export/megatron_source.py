"""A distributed checkpoint as a source of exports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from megatron_soaes.checkpoint.directory import HF_FILES, resolve
from megatron_soaes.checkpoint.model_weights import check_weights, read_weight
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.export.source import read_json
from megatron_soaes.models.families import weight_table
from megatron_soaes.recipe.shapes import read_shape


class MegatronSource:
    """A distributed checkpoint; a vocabulary matrix is one block, as it is stored."""

    def __init__(self, path: Path, iteration: int | None) -> None:
        self._reader = TorchDistReader(resolve(path, iteration))
        self.hf_files = self._reader.directory.parent / HF_FILES
        self.shape = read_shape(self.hf_files / "config.json")
        self.config = read_json(self.hf_files / "config.json")
        check_weights(self._reader, self.shape)

    def layer(self, index: int) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for weight in weight_table(self.shape):
            if weight.stacked:
                joined = read_weight(self._reader, weight, self.shape, index)
                parts = weight.transform.split(self.shape, joined)
                tensors |= zip(weight.hf_shapes(self.shape, index), parts, strict=True)
        return tensors

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        weight = next(w for w in weight_table(self.shape) if name in w.parts)
        yield 0, read_weight(self._reader, weight, self.shape, None)
