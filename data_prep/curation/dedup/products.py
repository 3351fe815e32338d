"""What is computed of a shard, or of all shards, kept as a directory that appears whole.

A product holds flat binary arrays and `header.json`: what kind it is, the settings and the shard it
was made with, and the shapes of the arrays. The same shard with the same settings is not computed
twice, and equal inputs give equal bytes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from megatron_soaes.errors import UserError
from megatron_soaes.files import atomic_directory, sha256_json, write_json

FORMAT = "soaes-dedup-1"
HEADER = "header.json"
Settings = Mapping[str, Any]
"""JSON values that decide what a product holds."""


@dataclass(frozen=True)
class Shard:
    """A part of the corpus: a name of its own, and the identity of its documents.

    `identity` must change when the documents do (path, byte range, size and time of change, or a
    hash): a product of another identity is made anew.
    """

    name: str
    identity: str


class Product:
    """A finished product, its arrays mapped from the disk."""

    def __init__(self, directory: Path, header: dict[str, Any]) -> None:
        self.directory = directory
        self.shard = Shard(**header["shard"])
        self.settings: dict[str, Any] = header["settings"]
        self.facts: dict[str, Any] = header["facts"]
        self._arrays: dict[str, dict[str, Any]] = header["arrays"]

    @property
    def documents(self) -> int:
        """How many documents the shard has."""
        return int(self.facts["documents"])

    def array(self, name: str) -> npt.NDArray[Any]:
        """One array, read-only and mapped."""
        dtype, shape = self._arrays[name]["dtype"], tuple(self._arrays[name]["shape"])
        if 0 in shape:
            return np.zeros(shape, dtype=dtype)
        return np.memmap(_array_file(self.directory, name), dtype=dtype, mode="r", shape=shape)


class ProductWriter:
    """Arrays of a product under way. `facts` become part of the header."""

    def __init__(self, directory: Path, files: ExitStack) -> None:
        self.directory = directory
        self.facts: dict[str, Any] = {}
        self.arrays: dict[str, dict[str, Any]] = {}
        self._files = files
        self._streams: dict[str, IO[bytes]] = {}

    def append(self, name: str, rows: npt.NDArray[Any]) -> None:
        """Add rows to the end of an array; all its parts have one dtype and one row shape."""
        rows = np.ascontiguousarray(rows)
        if name not in self.arrays:
            path = _array_file(self.directory, name)
            self._streams[name] = self._files.enter_context(path.open("wb"))
            self.arrays[name] = {"dtype": rows.dtype.str, "shape": [0, *rows.shape[1:]]}
        self._streams[name].write(rows.data)
        self.arrays[name]["shape"][0] += len(rows)


def is_finished(directory: Path, kind: str, settings: Settings, shard: Shard) -> bool:
    """Whether `directory` holds this product of these settings and this shard.

    Raises `UserError` when it holds something else than a whole product of this kind.
    """
    if not directory.exists():
        return False
    header = _read_header(directory, kind)
    return _fingerprint(header["settings"], header["shard"]) == _fingerprint(
        dict(settings), asdict(shard)
    )


@contextmanager
def create(directory: Path, kind: str, settings: Settings, shard: Shard) -> Iterator[ProductWriter]:
    """Write a product; it appears when the block ends and not if it raises.

    A finished product of the same kind but of other settings or another shard gives way first.
    """
    if directory.exists():
        _read_header(directory, kind)
        shutil.rmtree(directory)
    with atomic_directory(directory) as temporary:
        with ExitStack() as files:
            writer = ProductWriter(temporary, files)
            yield writer
        header = {
            "format": FORMAT,
            "kind": kind,
            "settings": dict(settings),
            "shard": asdict(shard),
            "facts": writer.facts,
            "arrays": writer.arrays,
        }
        write_json(temporary / HEADER, header)


def open_product(directory: Path, kind: str, settings: Settings | None = None) -> Product:
    """Open a finished product. Raises `UserError` when it is not whole, of another kind, or, where
    `settings` are given, made with others."""
    header = _read_header(directory, kind)
    if settings is not None and header["settings"] != dict(settings):
        found = header["settings"]
        differing = ", ".join(key for key in settings if found.get(key) != settings[key])
        raise UserError(
            directory,
            f"a product made with other settings (different: {differing})",
            "the settings of this run",
            "Make it again with these settings.",
        )
    return Product(directory, header)


def open_all(
    directories: Sequence[Path], kind: str, settings: Settings | None = None
) -> list[Product]:
    """Open the products of all shards, in corpus order. Raises `UserError` as `open_product` does,
    and when two are of shards of one name."""
    products = [open_product(directory, kind, settings) for directory in directories]
    seen: dict[str, Path] = {}
    for product in products:
        if product.shard.name in seen:
            raise UserError(
                product.directory,
                f"shard '{product.shard.name}', which {seen[product.shard.name]} is as well",
                "every shard once",
                "Give every shard a name of its own.",
            )
        seen[product.shard.name] = product.directory
    return products


def corpus_of(products: Sequence[Product]) -> Shard:
    """All shards as one: its identity changes with any of theirs, and with their order."""
    return Shard("corpus", sha256_json([asdict(product.shard) for product in products]))


def corpus_facts(products: Sequence[Product]) -> dict[str, Any]:
    """What a product of the whole corpus says of its shards: their names and first documents.

    A document's number in the corpus is the first of its shard plus its number in the shard.
    """
    counts = [product.documents for product in products]
    return {
        "documents": sum(counts),
        "shards": [product.shard.name for product in products],
        "first": [sum(counts[:i]) for i in range(len(counts))],
    }


def span_of(product: Product, name: str) -> tuple[int, int]:
    """The numbers in the corpus of shard `name`: the first, and the one after the last."""
    shards: list[str] = product.facts["shards"]
    if name not in shards:
        raise UserError(
            product.directory,
            f"no shard '{name}'",
            "a shard that it was made of",
            "Make it again with all shards.",
        )
    edges = [*product.facts["first"], product.documents]
    position = shards.index(name)
    return edges[position], edges[position + 1]


def _array_file(directory: Path, name: str) -> Path:
    return directory / f"{name}.bin"


def _fingerprint(settings: dict[str, Any], shard: dict[str, Any]) -> str:
    return sha256_json([settings, shard])


def _read_header(directory: Path, kind: str) -> dict[str, Any]:
    try:
        header = json.loads((directory / HEADER).read_text("utf-8"))
    except (OSError, ValueError):
        raise _not_ours(directory, f"no readable {HEADER}", kind) from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _not_ours(directory, "a directory of another program or version", kind)
    if header["kind"] != kind:
        raise _not_ours(directory, f"'{header['kind']}'", kind)
    for name, array in header["arrays"].items():
        path = _array_file(directory, name)
        size = math.prod(array["shape"]) * np.dtype(array["dtype"]).itemsize
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            raise UserError(
                path, f"{found} bytes", f"{size} bytes", f"Remove {directory} and run again."
            )
    return header


def _not_ours(directory: Path, found: str, kind: str) -> UserError:
    fix = "Remove it or choose another directory."
    return UserError(directory, found, f"a finished product of kind '{kind}'", fix)
