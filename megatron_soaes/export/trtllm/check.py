"""Is a directory a TensorRT-LLM checkpoint that an engine can be built from, and of which model?

TensorRT-LLM itself warns of extra tensors and looks at no value; this checker names them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_soaes.errors import UserError
from megatron_soaes.export.source import open_source
from megatron_soaes.export.trtllm.against import Comparison
from megatron_soaes.export.trtllm.config_check import Checked, check_config
from megatron_soaes.export.trtllm.opened import Checkpoint
from megatron_soaes.export.trtllm.problems import Problem
from megatron_soaes.export.trtllm.values import check_values, differing_rows


@dataclass(frozen=True)
class CheckReport:
    """What was looked at and what is wrong."""

    directory: Path
    ranks: int
    tensors: int
    """Of all rank files."""
    compared: int
    """HF tensors that were compared with the ranks' parts of them."""
    problems: list[Problem]
    notes: list[str]
    """What is no fault, and what could not be looked at."""


def check(directory: Path, against: Path | None = None) -> CheckReport:
    """Check files, configuration, names, shapes, dtypes and values of a checkpoint.

    With `against`, an HF directory or a folder of Megatron checkpoints, also that its ranks put
    together are that model bit for bit (in the checkpoint's dtype), and that its configuration
    means the same. Raises UserError when `directory` is none, or `against` cannot be read.
    """
    if not directory.is_dir():
        raise UserError(
            directory, "no such directory", "a TensorRT-LLM checkpoint", "Check the path."
        )
    checked, problems, notes = check_config(directory / "config.json")
    if checked is None:
        return CheckReport(directory, 0, 0, 0, problems, [*notes, "the rank files: not looked at"])
    checkpoint = Checkpoint(directory, checked)
    stages = checkpoint.stages()
    problems += [*_files(directory, checked), *checkpoint.problems]
    for stage in stages:
        problems += check_values(stage, checked)
    if checked.config.tie_word_embeddings:
        problems += differing_rows(stages[0], stages[-1], checked)
    compared = 0
    if against is not None:
        comparison = Comparison(checkpoint, open_source(against))
        compared = comparison.run()
        problems += comparison.problems
        notes += comparison.notes
    tensors = sum(len(reader.tensors) for reader in checkpoint.readers.values())
    return CheckReport(directory, len(checkpoint.readers), tensors, compared, problems, notes)


def _files(directory: Path, checked: Checked) -> list[Problem]:
    """Rule: `config.json`, a file for each rank, and nothing else."""
    ranks = range(checked.parallelism.world_size)
    expected = {"config.json", *(f"rank{rank}.safetensors" for rank in ranks)}
    present = {path.name for path in directory.iterdir()}
    missing = [Problem(str(directory / n), "nothing", "a file") for n in expected - present]
    rule = f"config.json and rank0 to rank{len(ranks) - 1}.safetensors only"
    extra = [Problem(str(directory / n), "a file", rule) for n in present - expected]
    return sorted(missing + extra, key=lambda problem: problem.where)
