"""The safetensors files of a checkpoint that is being checked, read in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_soaes.export.source import BLOCK_BYTES

ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""A dtype to compare bits with, by the bytes of a number."""


@dataclass(frozen=True)
class Stored:
    """What a file's header says of a tensor; `dtype` is the format's name for it."""

    dtype: str
    shape: tuple[int, ...]


class RankReader:
    """One file; only its header is read until tensors are."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or SafetensorError when the file is missing or damaged."""
        self.path = path
        with safe_open(path, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            self.tensors = {
                name: Stored(part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """The rows `first` to `last - 1` of a tensor; int8 is given as the FP8 that it stands for.

        TensorRT-LLM takes the bytes of an int8 weight as float8_e4m3fn.
        """
        with safe_open(self.path, framework="pt") as opened:
            part = cast(Tensor, opened.get_slice(name)[first:last])
        return part.view(torch.float8_e4m3fn) if part.dtype == torch.int8 else part

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The whole tensor: pairs of a first row and the rows from it on."""
        stored = self.tensors[name]
        row_bytes = math.prod(stored.shape[1:]) * ITEM_BYTES[stored.dtype]
        step = max(1, BLOCK_BYTES // max(1, row_bytes))
        for first in range(0, stored.shape[0], step):
            yield first, self.rows(name, first, min(first + step, stored.shape[0]))


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    bits = BITS[left.dtype.itemsize]
    return torch.equal(left.view(bits), right.view(bits))


def open_rank(path: Path) -> RankReader | str:
    """The file, or what is wrong with it."""
    try:
        return RankReader(path)
    except (SafetensorError, OSError) as error:
        return f"a damaged file ({error})"
