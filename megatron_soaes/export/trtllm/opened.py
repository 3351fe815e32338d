"""A checkpoint that is being checked: which of its tensors have the form they should have."""

from __future__ import annotations

from pathlib import Path

from megatron_soaes.export.trtllm.config_check import Checked
from megatron_soaes.export.trtllm.expected import Expected, expected_tensors
from megatron_soaes.export.trtllm.problems import Problem
from megatron_soaes.export.trtllm.rank_file import RankReader, open_rank
from megatron_soaes.export.trtllm.values import Stage


class Checkpoint:
    """The rank files, and the tensors in them that have the right shape and dtype."""

    def __init__(self, directory: Path, checked: Checked) -> None:
        self.directory = directory
        self.checked = checked
        self.readers: dict[int, RankReader] = {}
        self.sound: dict[int, dict[str, Expected]] = {}
        self.problems: list[Problem] = []
        """Whatever is wrong with names, shapes and dtypes."""
        for rank in range(checked.parallelism.world_size):
            path = directory / f"rank{rank}.safetensors"
            opened = open_rank(path) if path.is_file() else "nothing"
            self.sound[rank] = {}
            if isinstance(opened, RankReader):
                self.readers[rank] = opened
                self._check_tensors(rank, opened)
            elif path.is_file():
                self.problems.append(Problem(str(path), opened, "a safetensors file"))

    def _check_tensors(self, rank: int, reader: RankReader) -> None:
        expected = expected_tensors(self.checked, rank)
        for name, wanted in expected.items():
            stored = reader.tensors.get(name)
            rule = f"{' or '.join(wanted.dtypes)} {list(wanted.shape)}"
            if stored is None:
                if wanted.required:
                    self.problems.append(Problem(f"{reader.path}: {name}", "nothing", rule))
            elif stored.shape == wanted.shape and stored.dtype in wanted.dtypes:
                self.sound[rank][name] = wanted
            else:
                found = f"{stored.dtype} {list(stored.shape)}"
                self.problems.append(Problem(f"{reader.path}: {name}", found, rule))
        self.problems += [
            Problem(f"{reader.path}: {name}", "a tensor", "none of that name")
            for name in reader.tensors
            if name not in expected
        ]

    def stages(self) -> list[Stage]:
        """The ranks of each pipeline stage."""
        ways, stages = self.checked.parallelism.tensor, self.checked.parallelism.pipeline
        return [
            Stage(
                {
                    way: (self.readers[rank], self.sound[rank])
                    for way in range(ways)
                    if (rank := stage * ways + way) in self.readers
                }
            )
            for stage in range(stages)
        ]
