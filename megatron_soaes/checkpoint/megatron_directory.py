"""A Megatron-LM checkpoint directory: which iteration, in which format, with which arguments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_soaes.accelerator.safe_pickle import read_common
from megatron_soaes.checkpoint.directory import TRACKER, iteration_directory
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.megatron_shapes import given

COMMON = "common.pt"
FORMAT = "metadata.json"
RELEASE = "release"
"""The tracker's text and the folder's name after a conversion by Megatron-LM's tools."""
VERSION = 3.0
CONVERT = (
    "Convert it with Megatron-LM: start the training script as for training, with "
    "--ckpt-convert-format torch_dist --ckpt-convert-save NEW_DIR."
)


@dataclass(frozen=True)
class MegatronCheckpoint:
    """One iteration of a Megatron-LM run."""

    directory: Path
    """Holds common.pt, .metadata, metadata.json and the shards."""
    iteration: int
    arguments: Mapping[str, Any]
    """Megatron-LM's `args` at the time of saving."""
    common: Mapping[str, Any]
    """Everything in common.pt: the part of the state that is not split over ranks."""

    @property
    def where(self) -> str:
        """What errors about `arguments` name."""
        return f"{self.directory / COMMON}: args"

    def argument(self, name: str) -> Any:
        """One of `arguments`; UserError when it is not there."""
        return given(self.arguments, name, self.where)

    @property
    def has_optimizer(self) -> bool:
        """Whether optimizer state was saved beside the weights."""
        return "optimizer" in self.common


def is_megatron_directory(path: Path) -> bool:
    """Whether `path` looks like checkpoints of Megatron-LM, in whatever format, and not like HF."""
    names = (TRACKER, "iter_*", COMMON, FORMAT, ".metadata", "mp_rank_*")
    return not (path / "config.json").exists() and any(any(path.glob(name)) for name in names)


def open_megatron(path: Path) -> MegatronCheckpoint:
    """The newest iteration of a run's folder, or the iteration whose folder `path` is.

    Raises UserError for everything but a complete torch_dist checkpoint that holds `args`; for the
    format with one file a rank (`mp_rank_00/model_optim_rng.pt`) the message says how to convert.
    """
    directory = _iteration(path)
    _require_torch_dist(directory)
    common = read_common(directory / COMMON)
    arguments = common.get("args")
    if not isinstance(arguments, argparse.Namespace):
        raise UserError(
            directory / COMMON, "no args", "the arguments that Megatron-LM saves with a model",
            "Give a checkpoint that Megatron-LM's own training saved.",
        )  # fmt: skip
    version = common.get("checkpoint_version")
    if version != VERSION:
        raise UserError(
            f"{directory / COMMON}: checkpoint_version", str(version), str(VERSION),
            "Load and save it once with a present version of Megatron-LM.",
        )  # fmt: skip
    iteration = common.get("iteration")
    return MegatronCheckpoint(
        directory, iteration if isinstance(iteration, int) else 0, vars(arguments), common
    )


def _iteration(path: Path) -> Path:
    """The folder the tracker file names, or `path` itself where there is none."""
    tracker = path / TRACKER
    if not tracker.is_file():
        return path
    text = tracker.read_text(encoding="utf-8").strip()
    if text == RELEASE:
        directory = path / RELEASE
    elif text.isdecimal():
        directory = iteration_directory(path, int(text))
    else:
        directory = path / text
    if not directory.is_dir():
        raise UserError(
            tracker, repr(text), f"the number of an iter_ folder beside it, or {RELEASE}",
            "Correct the file, or give the folder of one iteration.",
        )  # fmt: skip
    return directory


def _require_torch_dist(directory: Path) -> None:
    if any(directory.glob("mp_rank_*")):
        raise UserError(
            directory, "one file a rank (mp_rank_*), the format 'torch'",
            "a torch_dist checkpoint", CONVERT,
        )  # fmt: skip
    file = directory / FORMAT
    if not file.is_file():
        dcp = (directory / ".metadata").is_file()
        raise UserError(
            directory, f"no {FORMAT}" + (" beside .metadata" if dcp else ""),
            "a torch_dist checkpoint that was saved to its end",
            "Give an older iteration if the save was interrupted. For the formats torch_dcp and "
            "fsdp_dtensor, load it with Megatron-LM and save it with --ckpt-format torch_dist."
            if dcp else "Give the folder that holds " + TRACKER + ", or one of its iterations.",
        )  # fmt: skip
    try:
        backend = json.loads(file.read_text(encoding="utf-8"))["sharded_backend"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            file, f"damaged content ({error})", "the JSON that Megatron-Core writes",
            "Give another iteration.",
        ) from None  # fmt: skip
    if backend != "torch_dist":
        raise UserError(
            f"{file}: sharded_backend", repr(backend), "'torch_dist'",
            "Load it with a Megatron-LM that still reads this format, and save it with "
            "--ckpt-format torch_dist.",
        )  # fmt: skip
    if not (directory / COMMON).is_file():
        raise UserError(
            directory, f"no {COMMON}", "the arguments of the run", "Give another iteration."
        )
