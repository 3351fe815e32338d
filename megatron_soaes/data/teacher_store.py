"""What a teacher said at every position of a dataset, on disk: a few tokens a position.

A store is a folder of shards of fixed-size records, so that any rank of any layout reads the
positions of any sample. `shard-NNNNN.bin` appears whole, then the `shard-NNNNN.json` that describes
it; a capture that was interrupted goes on with the shards that have none. `manifest.json` comes
last and describes all of them.

A record is, little-endian: `entries` token ids (uint32), as many log-probabilities (16 bits each)
and one float32. For kind `top_k` that is the logarithm of the probability of all other tokens
together; for kind `sampled`, of which tokens are drawn from r proportional to p ** exponent, it is
log(sum(p ** exponent)), which together with the exponent gives each draw its weight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_soaes import files
from megatron_soaes.errors import UserError
from megatron_soaes.failpoints import failpoint

FORMAT = "soaes-teacher-store"
VERSION = 1
MANIFEST = "manifest.json"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Origin:
    """What a store is about; it serves no other run."""

    tokenizer_sha256: str
    """Of the tokenizer.json whose ids it holds."""
    teacher: str
    """Identity of the teacher's checkpoint."""
    data: str
    """Hash of the samples, in their order."""
    temperature: float
    """Of the softmax that the probabilities come from."""


@dataclass(frozen=True)
class Layout:
    """How much it holds, and in what form."""

    kind: Literal["top_k", "sampled"]
    entries: int
    """Tokens a position: the k most likely, or the number of draws."""
    samples: int
    positions: int
    """Positions of each sample."""
    samples_per_shard: int
    dtype: Literal["fp16", "bf16"] = "fp16"
    """Of the log-probabilities. At -10 nats fp16 is exact to 0.004, bf16 to 0.03."""
    exponent: float = 1.0
    """Of the distribution that draws come from; without meaning for `top_k`."""

    @property
    def shards(self) -> int:
        """How many shards the samples fill."""
        return -(-self.samples // self.samples_per_shard)

    def samples_of(self, shard: int) -> int:
        """Samples of one shard; the last may have fewer than the others."""
        return min(self.samples_per_shard, self.samples - shard * self.samples_per_shard)

    def shard_bytes(self, shard: int) -> int:
        """Size of a shard's file."""
        return self.samples_of(shard) * self.positions * bytes_per_token(self.entries)

    def record(self) -> np.dtype[np.void]:
        """Of one position."""
        return np.dtype(
            [
                ("ids", "<u4", (self.entries,)),
                ("log_probs", "<i2", (self.entries,)),
                ("rest", "<f4"),
            ]
        )


@dataclass(frozen=True)
class Answers:
    """What the teacher said at the positions of one sample, or of several."""

    ids: Tensor
    """[..., positions, entries] int64."""
    log_probs: Tensor
    """[..., positions, entries] float32, nats."""
    rest: Tensor
    """[..., positions] float32; see the module."""

    def at(self, places: Tensor) -> Answers:
        """Those of some positions, in the order of `places`."""
        return Answers(
            self.ids[..., places, :], self.log_probs[..., places, :], self.rest[..., places]
        )


def bytes_per_token(entries: int) -> int:
    """Bytes that one position takes on disk, of either kind and dtype."""
    return 6 * entries + 4


class Capture:
    """Writes a store, shard by shard, in any order and from any number of processes."""

    def __init__(self, directory: Path, origin: Origin, layout: Layout) -> None:
        """UserError when the folder holds shards of something else."""
        self._directory = directory
        self._description = {"origin": asdict(origin), "layout": asdict(layout)}
        self._layout = layout
        for sidecar in sorted(directory.glob("shard-*.json")):
            _compare(sidecar, _read_description(sidecar), self._description)

    def missing(self) -> list[int]:
        """Shards that are still to be written, or were deleted or cut short since."""
        return [shard for shard in range(self._layout.shards) if not self._whole(shard)]

    def write(self, shard: int, answers: Answers) -> None:
        """All samples of a shard, [samples, positions, entries]; on return they are on the disk.

        ValueError for other shapes.
        """
        layout = self._layout
        shape = (layout.samples_of(shard), layout.positions, layout.entries)
        found = answers.ids.shape, answers.log_probs.shape, answers.rest.shape
        if found != (shape, shape, shape[:2]):
            raise ValueError(f"answers of shapes {found}, not {shape}")
        records = np.empty(shape[:2], layout.record())
        records["ids"] = answers.ids.cpu().numpy()
        rounded = answers.log_probs.cpu().to(DTYPES[layout.dtype])
        records["log_probs"] = rounded.view(torch.int16).numpy()
        records["rest"] = answers.rest.float().cpu().numpy()
        file = _shard(self._directory, shard)
        content = records.tobytes()
        with files.atomic_file(file, "wb") as stream:
            stream.write(content)
        failpoint("mid-store-shard")
        sums = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        self._write(_sidecar(self._directory, shard), {file.name: sums})

    def finish(self) -> None:
        """Describe the whole store; UserError while shards are missing."""
        if missing := self.missing():
            raise UserError(
                self._directory, f"no {_shard(self._directory, missing[0]).name}",
                f"{self._layout.shards} shards", "Run the capture again; it goes on from here.",
            )  # fmt: skip
        shards: dict[str, Any] = {}
        for shard in range(self._layout.shards):
            shards |= self._read(shard)["shards"]
        self._write(self._directory / MANIFEST, shards)

    def _whole(self, shard: int) -> bool:
        file = _shard(self._directory, shard)
        described = file.exists() and _sidecar(self._directory, shard).exists()
        return described and file.stat().st_size == self._layout.shard_bytes(shard)

    def _read(self, shard: int) -> dict[str, Any]:
        return _read_description(_sidecar(self._directory, shard))

    def _write(self, file: Path, shards: Mapping[str, Any]) -> None:
        head = {"format": FORMAT, "version": VERSION}
        files.write_json(file, head | self._description | {"shards": shards})


class TeacherStore:
    """A finished store; shards are mapped into memory when they are first read."""

    def __init__(self, directory: Path, origin: Origin) -> None:
        """UserError when the capture has not ended, for another origin, and for shards that are
        missing or of another size. Whether their content is as it was captured is what `verify`
        finds out, by reading all of it.
        """
        self._directory = directory
        self._origin = origin
        manifest = directory / MANIFEST
        if not manifest.exists():
            raise UserError(
                manifest, "no such file", "a teacher store whose capture has ended",
                "Run the capture again; it goes on where it stopped.",
            )  # fmt: skip
        content = _read_description(manifest)
        _compare(manifest, content, {"origin": asdict(origin)})
        self.layout = _layout(manifest, content)
        self._sums: dict[str, Any] = content["shards"]
        self._maps: dict[int, NDArray[np.void]] = {}
        for shard in range(self.layout.shards):
            self._check_size(shard)

    def __len__(self) -> int:
        """Samples."""
        return self.layout.samples

    def description(self) -> dict[str, Any]:
        """What it is about and how much it holds, as JSON."""
        return {"origin": asdict(self._origin), "layout": asdict(self.layout)}

    def __getitem__(self, sample: int) -> Answers:
        """Of one sample; row i is what follows the first i + 1 tokens that the sample reads."""
        if not 0 <= sample < len(self):
            raise IndexError(sample)
        shard, place = divmod(sample, self.layout.samples_per_shard)
        records = self._map(shard)[place]
        bits = torch.from_numpy(records["log_probs"].astype(np.int16))
        return Answers(
            torch.from_numpy(records["ids"].astype(np.int64)),
            bits.view(DTYPES[self.layout.dtype]).float(),
            torch.from_numpy(records["rest"].astype(np.float32)),
        )

    def verify(self) -> None:
        """Read every shard; UserError for one whose content is not what was captured."""
        for shard in range(self.layout.shards):
            file = _shard(self._directory, shard)
            found, expected = files.sha256_file(file), self._sums[file.name]["sha256"]
            if found != expected:
                raise _damaged(file, f"SHA-256 {found[:12]}", expected[:12])

    def _check_size(self, shard: int) -> None:
        file = _shard(self._directory, shard)
        if not file.is_file() or file.name not in self._sums:
            raise _damaged(file, "no such shard", "one, which the manifest describes")
        layout, found = self.layout, file.stat().st_size
        if found != layout.shard_bytes(shard):
            raise _damaged(file, f"{found} bytes", str(layout.shard_bytes(shard)))

    def _map(self, shard: int) -> NDArray[np.void]:
        if shard not in self._maps:
            layout = self.layout
            shape = (layout.samples_of(shard), layout.positions)
            self._maps[shard] = np.memmap(
                _shard(self._directory, shard), layout.record(), mode="r", shape=shape
            )
        return self._maps[shard]


def _shard(directory: Path, shard: int) -> Path:
    return directory / f"shard-{shard:05d}.bin"


def _sidecar(directory: Path, shard: int) -> Path:
    return _shard(directory, shard).with_suffix(".json")


def _read_description(file: Path) -> dict[str, Any]:
    """Of a shard or of the whole store; UserError when it is damaged or of something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {content['format']}, version {content['version']}")
        return {name: content[name] for name in ("origin", "layout", "shards")}
    except (ValueError, KeyError, TypeError) as error:
        raise _foreign(file, error) from None


def _foreign(file: Path, error: Exception) -> UserError:
    return UserError(
        file, f"damaged or foreign content ({error})", f"{FORMAT}, version {VERSION}",
        "Delete this file and run the capture again; it makes what is missing.",
    )  # fmt: skip


def _layout(file: Path, content: Mapping[str, Any]) -> Layout:
    try:
        return Layout(**content["layout"])
    except TypeError as error:
        raise _foreign(file, error) from None


def _compare(file: Path, content: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """UserError that names every field in which a description is not as expected."""
    differences = [
        (f"{section}.{name}", content[section].get(name), value)
        for section, fields in expected.items()
        for name, value in fields.items()
        if content[section].get(name) != value
    ]
    if differences:
        raise UserError(
            file,
            ", ".join(f"{name} {found}" for name, found, _ in differences),
            ", ".join(f"{name} {value}" for name, _, value in differences),
            "Capture the teacher again, into another folder, or use what the store was made from.",
        )


def _damaged(file: Path, found: str, expected: str) -> UserError:
    fix = "Delete this shard with its .json and run the capture again; it makes what is missing."
    return UserError(file, found, expected, fix)
