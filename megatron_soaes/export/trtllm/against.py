"""Are the ranks of a checkpoint, put together, a given model?"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_soaes.export.source import Source
from megatron_soaes.export.trtllm.config import trtllm_config
from megatron_soaes.export.trtllm.expected import FP8
from megatron_soaes.export.trtllm.layout import (
    EMBEDDING,
    FINAL_NORM,
    OUTPUT,
    Destination,
    destinations,
    parts_of,
    rank_tensors,
)
from megatron_soaes.export.trtllm.opened import Checkpoint
from megatron_soaes.export.trtllm.problems import Problem
from megatron_soaes.export.trtllm.rank_file import same_bits

COMPARED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size",
    "intermediate_size", "norm_epsilon", "max_position_embeddings", "rotary_base",
    "rotary_scaling",
)  # fmt: skip


class Comparison:
    """Compares settings, then every HF tensor with the parts of it that the ranks hold."""

    def __init__(self, checkpoint: Checkpoint, source: Source) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self._checkpoint = checkpoint
        self._config = checkpoint.checked.config
        self._source = source
        self._skipped: set[str] = set()
        self._different: set[tuple[int, str]] = set()

    def run(self) -> int:
        """Returns how many HF tensors were compared: none when the settings differ already."""
        self._compare_settings()
        if self.problems:
            return 0
        shape, parallelism = self._source.shape, self._checkpoint.checked.parallelism
        targets = destinations(
            [
                rank_tensors(shape, self._config.vocab_size, parallelism, rank)
                for rank in range(parallelism.world_size)
            ]
        )
        for name in (EMBEDDING, FINAL_NORM, *([] if shape.tied_embeddings else [OUTPUT])):
            for first, block in self._source.blocks(name):
                self._compare(name, first, block, targets[name])
        for index in range(shape.layers):
            for name, tensor in self._source.layer(index).items():
                self._compare(name, 0, tensor, targets[name])
        self._remark()
        return len(targets) - len(self._skipped)

    def _compare(self, name: str, first: int, block: Tensor, targets: list[Destination]) -> None:
        converted = block.to(getattr(torch, self._config.dtype))
        for target, row, part in parts_of(converted, first, targets):
            key = target.rank, target.tensor.name
            wanted = self._checkpoint.sound[target.rank].get(target.tensor.name)
            if wanted is None or wanted.dtypes == FP8:
                self._skipped.add(name)
                continue
            reader = self._checkpoint.readers[target.rank]
            stored = reader.rows(target.tensor.name, row, row + len(part))
            if key not in self._different and not same_bits(stored, part):
                self._different.add(key)
                where = f"{reader.path}: {target.tensor.name}"
                rows = f"in rows {row} to {row + len(part) - 1}"
                rule = f"its part of {name} of the model"
                self.problems.append(Problem(where, f"other values {rows}", rule))

    def _compare_settings(self) -> None:
        """Fields of config.json that describe another model than the source."""
        checked, source = self._checkpoint.checked, self._source
        wanted = trtllm_config(
            source.shape, source.config, self._config.dtype, self._config.vocab_size,
            checked.parallelism,
        )  # fmt: skip
        found = {name: getattr(self._config, name) for name in COMPARED}
        scaling = found["rotary_scaling"]
        if scaling is not None:
            kind = scaling.get("type", scaling.get("rope_type"))
            rest = {
                k: v for k, v in scaling.items() if k not in ("type", "rope_type", "rope_theta")
            }
            found["rotary_scaling"] = None if kind == "none" else {"rope_type": kind, **rest}
        pairs = {name: (value, wanted[name]) for name, value in found.items()}
        pairs["architecture"] = checked.shape.family, source.shape.family
        file = self._checkpoint.directory / "config.json"
        self.problems += [
            Problem(f"{file}: {name}", repr(here), f"{there!r}, as the model has it")
            for name, (here, there) in pairs.items()
            if here != there
        ]

    def _remark(self) -> None:
        if self._skipped:
            self.notes.append(
                f"{len(self._skipped)} tensors of the model were not compared: quantised, or not "
                "there in the right form"
            )
        here, there = self._config.vocab_size, self._source.shape.vocab_size
        if here != there:
            self.notes.append(
                f"vocabulary: {here} rows here, {there} in the model; the first "
                f"{min(here, there)} were compared"
            )
