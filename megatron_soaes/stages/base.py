"""What a stage is: it says what it would read and write, and then does it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_soaes.recipe.schema import Recipe

MANIFEST_FILE = "manifest.json"
"""In the folder of a finished stage; the runner writes it."""


@dataclass(frozen=True)
class Plan:
    """What a stage would do, known before it runs and without torch."""

    name: str
    kind: str
    inputs: Mapping[str, Path]
    """Files or folders it reads, by a name of its own choosing."""
    outputs: Mapping[str, Path]
    """Files or folders it makes, all below `directory`."""
    config: Mapping[str, Any]
    """JSON: what decides the result besides the inputs. The layout is not in it."""
    directory: Path
    processes: int = 1
    resumable: bool = False
    """Whether what an interrupted run left behind is of use to the next one."""


class Stopped(Exception):
    """A signal ended the stage early; its state is saved and the next run goes on from there."""


class Stage(ABC):
    """One node of a run's graph, bound to its recipe."""

    kind: str

    def __init__(self, recipe: Recipe, name: str) -> None:
        self.recipe = recipe
        self.name = name

    @property
    def directory(self) -> Path:
        """Folder of everything this stage writes."""
        return self.recipe.workdir / self.name

    @abstractmethod
    def plan(self) -> Plan:
        """Inputs, outputs and configuration. Raises UserError for inputs that cannot be named."""

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Do the work as one of `plan().processes` ranks; returns the metrics (those of rank 0
        count). Outputs appear whole. Raises UserError for bad input and Stopped after a signal.
        """
