"""The files of a Hugging Face model directory: safetensors read lazily and written as a stream."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_soaes.errors import UserError
from megatron_soaes.files import write_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()} | {torch.float8_e4m3fn: "F8_E4M3"}
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx"}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor of an HF directory lies, and what its file's header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class HFWeights:
    """The tensors of an HF directory. Only headers are read until `read` is called."""

    def __init__(self, directory: Path) -> None:
        """Raises UserError for missing, truncated or contradictory files, naming them."""
        self.directory = directory
        self.tensors: dict[str, StoredTensor] = {}
        index = directory / INDEX_FILE
        promised = _read_index(index) if index.is_file() else {}
        for file in sorted({directory / name for name in promised.values()}) or [
            _single_file(directory)
        ]:
            self.tensors.update(_read_header(file))
        for name, file_name in promised.items():
            stored = self.tensors.get(name)
            if stored is None or stored.file.name != file_name:
                raise UserError(
                    directory / file_name, f"no tensor {name}", f"it, because {INDEX_FILE} says so",
                    "Download the model again.",
                )  # fmt: skip

    def read(self, name: str) -> Tensor:
        """The tensor, with the dtype it is stored in; its file is closed before this returns."""
        with safe_open(self.tensors[name].file, framework="pt") as opened:
            return cast(Tensor, opened.get_tensor(name))


def _single_file(directory: Path) -> Path:
    file = directory / WEIGHTS_FILE
    if file.is_file():
        return file
    others = sorted(p.name for p in directory.glob("*") if p.suffix in _WEIGHT_SUFFIXES)
    found = "only " + ", ".join(others[:3]) if others else "no weights"
    raise UserError(
        directory, found, f"{WEIGHTS_FILE} or {INDEX_FILE}",
        "Load the model with transformers and save_pretrained it: that writes safetensors.",
    )  # fmt: skip


def _read_index(index: Path) -> dict[str, str]:
    """Tensor names to file names, as the index of a sharded model promises."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        promised = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            index, f"no readable weight_map ({error})", "a JSON object of tensor names to files",
            "Download the model again.",
        ) from None  # fmt: skip
    for file in sorted(set(promised.values())):
        if not (index.parent / file).is_file():
            raise UserError(
                index, f"{file}, which is not there", "files that exist beside the index",
                "Download the missing file.",
            )  # fmt: skip
    return promised


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            headers = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            facts = {n: (tuple(h.get_shape()), h.get_dtype()) for n, h in headers.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            file,
            f"a damaged file ({error})",
            "a whole safetensors file",
            "Download the file again.",
        ) from None
    for name, (_, code) in facts.items():
        if code not in DTYPES:
            raise UserError(
                f"{file}: {name}", f"dtype {code}", "one of " + ", ".join(DTYPES),
                "Quantised weights cannot be trained; use the model's original weights.",
            )  # fmt: skip
    return {name: StoredTensor(file, shape, DTYPES[code]) for name, (shape, code) in facts.items()}


def copy_other_files(source: Path, target: Path) -> None:
    """Copy everything that is neither weights nor hidden: config, tokenizer, generation config."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        if entry.name.startswith(".") or entry.name.endswith(".index.json"):
            continue
        if entry.is_dir():
            copy_other_files(entry, target / entry.name)
        elif entry.suffix not in _WEIGHT_SUFFIXES:
            shutil.copyfile(entry, target / entry.name)


def rewrite_for_transformers_4(tokenizer_config: Path) -> None:
    """Write a tokenizer_config.json of transformers 5 as transformers 4 wrote it, if it is one.

    transformers 5 reads both; 4 knows neither the class that 5 names for every fast tokenizer nor
    a list of extra special tokens. Raises UserError when the file is not a JSON object.
    """
    if not tokenizer_config.is_file():
        return
    try:
        config = dict(json.loads(tokenizer_config.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            tokenizer_config, f"invalid content ({error})", "a JSON object",
            "Copy the file from the base model.",
        ) from None  # fmt: skip
    original = dict(config)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        extra = config.pop("extra_special_tokens")
        config.setdefault("additional_special_tokens", extra)
    if config != original:
        write_json(tokenizer_config, config)


Planned = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Tensor names, in the order in which they will be written, to shapes and dtypes."""


class SafetensorsWriter:
    """Writes a model as safetensors shards, tensor by tensor, in the order planned.

    Files are named as transformers names them: `model.safetensors` alone when everything fits one
    shard, otherwise numbered shards and their index. Only the tensor being written is in memory.
    """

    def __init__(self, directory: Path, plan: Planned, shard_bytes: int) -> None:
        self._sizes = {name: math.prod(shape) * t.itemsize for name, (shape, t) in plan.items()}
        self._plan = plan
        self._directory = directory
        self._shards = _cut_into_shards(self._sizes, shard_bytes)
        self.files = _shard_names(len(self._shards))
        self._stream: IO[bytes] | None = None
        self._order = self._opening_order()

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor of the plan; `tensor` must have its shape and dtype."""
        expected = next(self._order, None)
        if (name, tuple(tensor.shape), tensor.dtype) != (expected, *self._plan[name]):
            raise ValueError(
                f"{name} {tuple(tensor.shape)} is not the next of the plan: {expected}"
            )
        assert self._stream is not None
        self._stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    def close(self) -> None:
        """End the last shard and write the index. Raises ValueError when tensors are missing."""
        missing = next(self._order, None)
        if missing is not None:
            raise ValueError(f"{missing} was never written")
        if len(self._shards) > 1:
            weight_map = {
                name: file
                for file, shard in zip(self.files, self._shards, strict=True)
                for name in shard
            }
            total = {"total_size": sum(self._sizes.values())}
            write_json(self._directory / INDEX_FILE, {"metadata": total, "weight_map": weight_map})

    def _opening_order(self) -> Iterator[str]:
        """The names in order; a shard is open from before its first name until after its last."""
        for file, shard in zip(self.files, self._shards, strict=True):
            with (self._directory / file).open("wb") as self._stream:
                self._stream.write(self._header(shard))
                yield from shard

    def _header(self, shard: Sequence[str]) -> bytes:
        """Length, then JSON of dtypes, shapes and offsets (the safetensors format)."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name in shard:
            shape, dtype = self._plan[name]
            end = start + self._sizes[name]
            header[name] = {
                "dtype": _DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [start, end],
            }  # fmt: skip
            start = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def _cut_into_shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHTS_FILE]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
