"""Write a model as a TensorRT-LLM checkpoint: `config.json` and one safetensors file a rank."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from megatron_soaes import files
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.errors import UserError
from megatron_soaes.export.fp8.calibration import Fp8, quantise
from megatron_soaes.export.fp8.report import Quality
from megatron_soaes.export.fp8.scales import Scales, to_fp8
from megatron_soaes.export.source import Source, open_source, stored_dtype
from megatron_soaes.export.trtllm.config import CODES, dtype_named, trtllm_config
from megatron_soaes.export.trtllm.fp8 import quantised, quantization_fields, scale_tensors
from megatron_soaes.export.trtllm.layout import (
    EMBEDDING,
    FINAL_NORM,
    OUTPUT,
    Parallelism,
    RankTensor,
    destinations,
    parts_of,
    rank_tensors,
    require_legal,
)
from megatron_soaes.export.vocabulary import exported_vocab_size

ITEM_BYTES = {None: 2, "float8_e4m3fn": 1, "float32": 4}
"""Bytes of a number, by `RankTensor.dtype`."""
WORKERS = min(4, os.cpu_count() or 1)
"""Layers that are in memory, and written, at a time."""


@dataclass(frozen=True)
class TrtllmReport:
    """What an export did."""

    directory: Path
    ranks: int
    tensors: int
    bytes: int
    vocab_size: int
    fp8: Quality | None
    """What FP8 costs; None without FP8."""


def export_trtllm(
    source_dir: Path,
    out_dir: Path,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    dtype: str = "bf16",
    vocab_size: int | None = None,
    iteration: int | None = None,
    fp8: Fp8 | None = None,
    progress: Progress | None = None,
    calibration_progress: Progress | None = None,
) -> TrtllmReport:
    """Write an HF directory or a Megatron checkpoint as `trtllm-build` of TensorRT-LLM reads it.

    All tensors have `dtype`, bf16 or fp16; with `fp8` the matrices of the layers are FP8, if
    `export.fp8.calibration` finds that it costs little enough. `vocab_size` cuts or adds rows that
    no token uses (`export.vocabulary`). Memory is bounded by `WORKERS` layers, or blocks of a
    vocabulary matrix (all of it, from a Megatron checkpoint); calibration needs more. `out_dir`
    appears whole or not at all. Raises UserError when it exists, when the model cannot be read or
    cut so, when a value does not fit `dtype`, when FP8 costs too much, and when the disk is full.
    """
    _require_new(out_dir)
    stored = dtype_named(dtype)
    source = open_source(source_dir, iteration)
    parallelism = Parallelism(tensor_parallel, pipeline_parallel)
    require_legal(source.shape, parallelism)
    vocab_size = exported_vocab_size(source, vocab_size)
    ranks = [
        rank_tensors(source.shape, vocab_size, parallelism, rank)
        for rank in range(parallelism.world_size)
    ]
    config = trtllm_config(source.shape, source.config, stored, vocab_size, parallelism)
    scales, quality = Scales((), ()), None
    if fp8 is not None:
        scales, quality = quantise(source, fp8, getattr(torch, stored), calibration_progress)
        config["quantization"] = quantization_fields(scales)
        config["producer"]["fp8"] = asdict(quality)
        ranks = [quantised(tensors, scales) for tensors in ranks]
    total = sum(_bytes(tensor) for tensors in ranks for tensor in tensors)
    _require_room(out_dir, total)
    with files.atomic_directory(out_dir) as target:
        files.write_json(target / "config.json", config)
        with ExitStack() as stack:
            opened = [
                stack.enter_context(RankFile(target / f"rank{rank}.safetensors", tensors, stored))
                for rank, tensors in enumerate(ranks)
            ]
            _Copy(source, opened, getattr(torch, stored), vocab_size, scales).run(progress)
    return TrtllmReport(out_dir, len(ranks), sum(map(len, ranks)), total, vocab_size, quality)


class RankFile:
    """A safetensors file whose tensors are written in parts, in any order and by any thread."""

    def __init__(self, path: Path, tensors: Sequence[RankTensor], dtype: str) -> None:
        self.tensors = tensors
        self._path = path
        self._header = header(tensors, dtype)
        self._offsets: dict[str, int] = {}
        self._end = len(self._header)
        for tensor in tensors:
            self._offsets[tensor.name] = self._end
            self._end += _bytes(tensor)

    def __enter__(self) -> RankFile:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        # The padding rows are never written: they are zero because the file is extended here.
        os.ftruncate(self._descriptor, self._end)
        self._write(0, memoryview(self._header))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def write(self, tensor: RankTensor, row: int, part: Tensor) -> None:
        """Put `part` into `tensor`, from `row` on."""
        offset = (
            self._offsets[tensor.name]
            + row * math.prod(tensor.shape[1:]) * ITEM_BYTES[tensor.dtype]
        )
        data = part.contiguous().view(-1).view(torch.uint8).numpy()
        self._write(offset, data.data)

    def _write(self, offset: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            offset, data = offset + written, data[written:]


def header(tensors: Sequence[RankTensor], dtype: str) -> bytes:
    """Length, then JSON of dtypes, shapes and offsets (the safetensors format)."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + _bytes(tensor)
        entries[tensor.name] = {
            "dtype": CODES[tensor.dtype or dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Copy:
    """Reads each HF tensor once and writes its parts into all files that hold some of it."""

    def __init__(
        self,
        source: Source,
        ranks: Sequence[RankFile],
        dtype: torch.dtype,
        vocab_size: int,
        scales: Scales,
    ) -> None:
        self._source = source
        self._ranks = ranks
        self._dtype = dtype
        self._vocab_size = vocab_size
        self._scales = scales
        self._targets = destinations([rank.tensors for rank in ranks])

    def run(self, progress: Progress | None) -> None:
        for rank in self._ranks:
            for tensor, scale in scale_tensors(rank.tensors, self._scales).items():
                rank.write(tensor, 0, scale)
        shape = self._source.shape
        outside = [EMBEDDING, FINAL_NORM, *([] if shape.tied_embeddings else [OUTPUT])]
        tasks: list[Callable[[], int]] = [partial(self._outside, name) for name in outside]
        tasks += [partial(self._layer, index) for index in range(shape.layers)]
        done = 0
        with ThreadPoolExecutor(WORKERS) as pool:
            for parameters in pool.map(lambda task: task(), tasks):
                done += parameters
                if progress is not None:
                    progress(done, shape.parameters)

    def _layer(self, index: int) -> int:
        """Copy a layer; returns its parameters."""
        tensors = self._source.layer(index)
        for name, tensor in tensors.items():
            self._write(name, 0, tensor)
        return sum(tensor.numel() for tensor in tensors.values())

    def _outside(self, name: str) -> int:
        """Copy a tensor outside the layers; vocabulary rows that are added repeat the last one."""
        parameters = 0
        for first, block in self._source.blocks(name):
            self._write(name, first, block)
            parameters += block.numel()
        missing = self._vocab_size - self._source.shape.vocab_size
        if missing > 0 and name != FINAL_NORM:
            self._write(name, first + len(block), block[-1:].expand(missing, -1))
        return parameters

    def _write(self, name: str, first: int, block: Tensor) -> None:
        converted = stored_dtype(block, self._dtype, name)
        if name in self._scales.weights:
            converted = to_fp8(converted, self._scales.weights[name])
        for target, row, part in parts_of(converted, first, self._targets[name]):
            self._ranks[target.rank].write(target.tensor, row, part)


def _bytes(tensor: RankTensor) -> int:
    return math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]


def _require_new(out_dir: Path) -> None:
    if out_dir.exists():
        raise UserError(
            out_dir, "something already there", "a path that does not exist",
            "Choose another path, or remove what is there.",
        )  # fmt: skip


def _require_room(out_dir: Path, needed: int) -> None:
    place = next(parent for parent in out_dir.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            place, f"{free:,} bytes free", f"{needed:,} for the rank files",
            "Make room, or choose another disk.",
        )  # fmt: skip
