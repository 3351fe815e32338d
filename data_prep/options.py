"""What every conversion is asked: inputs, outputs and how to run; and the checks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from data_prep.encoders import BackendChoice
from data_prep.ranges import InputFile
from megatron_soaes.errors import UserError

BAD_LINES = "bad-lines.jsonl"
DESCRIPTION = "description.json"


class RunOptions(ABC):
    """The options of every conversion, under the names of their command-line flags."""

    inputs: tuple[str, ...]
    output_prefix: Path
    tokenizer_model: Path
    workers: int
    partitions: int | None
    log_interval: int
    backend: BackendChoice
    skip_bad_lines: Path | None
    overwrite: bool

    @abstractmethod
    def dataset_files(self) -> dict[str, Path]:
        """The files of the datasets in their order, by their names in the work directory."""

    @property
    @abstractmethod
    def description(self) -> Path:
        """The JSON file whose presence says that the outputs are whole."""

    @property
    def collect_bad(self) -> bool:
        """Whether bad lines are collected instead of ending the run."""
        return self.skip_bad_lines is not None

    def targets(self) -> dict[str, Path]:
        """The outputs in the order in which they appear, by their names in the work directory."""
        targets = self.dataset_files()
        if self.skip_bad_lines is not None:
            targets[BAD_LINES] = self.skip_bad_lines
        targets[DESCRIPTION] = self.description
        return targets


def check_numbers(options: RunOptions) -> None:
    """Raise `UserError` for a number of workers, ranges or documents below one."""
    for flag, value in (
        ("--workers", options.workers),
        ("--partitions", 1 if options.partitions is None else options.partitions),
        ("--log-interval", options.log_interval),
    ):
        if value < 1:
            raise UserError(flag, str(value), "1 or more", "Raise it.")


def check_targets(options: RunOptions, files: list[InputFile], resuming: bool) -> None:
    """Make the folders of the outputs.

    Raises `UserError` when an output is an input or another output, or exists, neither to be
    replaced nor the work of the run that is resumed.
    """
    protected = {file.path.resolve() for file in files}
    for target in options.targets().values():
        if target.resolve() in protected:
            raise UserError(
                target, "an input of this run", "a new file", "Choose another name for the output."
            )
        protected.add(target.resolve())
        if target.exists() and not options.overwrite and not resuming:
            raise UserError(
                target,
                "an existing file",
                "no output of an earlier run",
                "Choose another --output-prefix, or replace it with --overwrite.",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
