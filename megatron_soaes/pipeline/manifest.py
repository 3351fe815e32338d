"""What a finished stage read and wrote: `manifest.json` in its folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import megatron_soaes
from megatron_soaes import files
from megatron_soaes.accelerator.machine import Machine
from megatron_soaes.errors import UserError
from megatron_soaes.failpoints import failpoint
from megatron_soaes.stages.base import MANIFEST_FILE, Plan

FORMAT_VERSION = 1
MOST_SHOWN = 3
"""Inputs that a message names."""


@dataclass(frozen=True)
class Output:
    """One file or folder a stage made."""

    path: str
    hash: str
    files: dict[str, int]
    """Size in bytes of each file, by its path within a folder ("" for a single file)."""


@dataclass(frozen=True)
class Manifest:
    """The record of a finished stage; its existence says that the stage is finished."""

    stage: str
    kind: str
    config: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    """Path and hash of each input."""
    outputs: dict[str, Output]
    metrics: dict[str, Any]
    code: dict[str, str]
    versions: dict[str, str]
    device: str
    processes: int
    started: str
    finished: str

    @property
    def seconds(self) -> float:
        """How long the stage took; of one that went on, the last part of it."""
        started, finished = map(datetime.fromisoformat, (self.started, self.finished))
        return (finished - started).total_seconds()

    def write(self, directory: Path) -> None:
        """Write it atomically; the last act of a stage."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        failpoint("before-manifest")
        files.write_json(directory / MANIFEST_FILE, content)


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a finished stage, None when there is none.

    Raises UserError when it cannot be understood.
    """
    file = directory / MANIFEST_FILE
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version is not {FORMAT_VERSION}")
        outputs = {name: Output(**output) for name, output in content.pop("outputs").items()}
        return Manifest(**content, outputs=outputs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            file, f"a damaged manifest ({error})", "the JSON this program writes",
            f"Remove the folder {directory} to run the stage again.",
        ) from None  # fmt: skip


def why_stale(manifest: Manifest, plan: Plan, input_hashes: Mapping[str, str]) -> str | None:
    """Why a finished stage must run again, in a few words; None when it need not."""
    config = json.loads(json.dumps(dict(plan.config)))
    if changed := differing(manifest.config, config):
        return "changed settings: " + ", ".join(changed)
    before = {name: record["hash"] for name, record in manifest.inputs.items()}
    if changed := differing(before, input_hashes):
        return "changed inputs: " + paths_of(changed, plan)
    for output in manifest.outputs.values():
        for name, size in output.files.items():
            file = Path(output.path) / name if name else Path(output.path)
            if not file.is_file() or file.stat().st_size != size:
                return f"missing or altered output: {file}"
    return None


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names, in order, whose values differ or that only one of both has."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def paths_of(inputs: Sequence[str], plan: Plan) -> str:
    """Where a stage's inputs lie, as far as it still has them; many are counted."""
    shown = [str(plan.inputs.get(name, f"{name}, which it had")) for name in inputs[:MOST_SHOWN]]
    hidden = len(inputs) - len(shown)
    return ", ".join(shown) + (f" and {hidden} more" if hidden else "")


@cache
def code_identity() -> dict[str, str]:
    """Version of this package and a hash of its source files."""
    root = Path(megatron_soaes.__file__).parent
    hashes = {
        str(file.relative_to(root)): files.sha256_file(file) for file in sorted(root.rglob("*.py"))
    }
    return {"version": megatron_soaes.__version__, "sha256": files.sha256_json(hashes)}


def describe_device(machine: Machine) -> str:
    """The computing device in words."""
    if machine.device == "cuda":
        return f"{machine.gpu_count} x {machine.gpu_name}"
    return f"CPU, {machine.cores} cores ({platform.machine()})"
