"""All tensors of a checkpoint, whole."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from megatron_soaes.checkpoint.directory import iteration_directory, require_iteration
from megatron_soaes.checkpoint.torch_dist import TorchDistReader


def tensors_in(directory: Path) -> dict[str, Tensor]:
    """Weights and optimizer state of one checkpoint folder."""
    reader = TorchDistReader(directory)
    return {key: reader.read_slice(key, [0] * len(s), s) for key, s in reader.shapes.items()}


def newest_tensors(root: Path) -> dict[str, Tensor]:
    """The same of the newest checkpoint under a root."""
    return tensors_in(iteration_directory(root, require_iteration(root)))
