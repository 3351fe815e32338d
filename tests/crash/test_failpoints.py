"""One run killed at every failpoint, one after the other, has the results of the unkilled run."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_soaes.errors import ExitCode
from megatron_soaes.failpoints import FAILPOINTS, VARIABLE
from tests.crash.graph import copy_graph, differences, start

pytestmark = pytest.mark.timeout(900)
"""The first test waits for all the runs."""

RUNNER, RANK, TOKENIZER = -signal.SIGKILL, 128 + signal.SIGKILL, 1
"""The exit code of a run whose own process was killed, a rank of it, a worker of a rank."""
DEATHS: list[tuple[str, str | None, int]] = [
    ("before-file-rename", None, RUNNER),
    ("mid-dataset-shard", "preprocess-mine", TOKENIZER),
    ("before-directory-rename", "preprocess-mine", TOKENIZER),
    ("before-manifest", "preprocess-mine", RUNNER),
    ("between-stages", "preprocess-mine", RUNNER),
    ("mid-checkpoint-shard", "cpt", RANK),
    ("before-pointer", "cpt", RANK),
    ("mid-checkpoint-shard:2", "cpt", RANK),
    ("before-discard", "cpt", RANK),
    ("before-manifest", "cpt", RUNNER),
    ("mid-store-shard", "capture", RANK),
    ("mid-checkpoint-shard", "distil", RANK),
    ("before-directory-rename", "distil", RANK),
    ("before-pointer:2", "distil", RANK),
]
"""What each run is told, the stage it dies in, its code; each goes on where the last one died."""


@dataclass(frozen=True)
class Death:
    """How one run ended."""

    code: int
    output: str

    @property
    def stage(self) -> str | None:
        """The last stage that the run said it begins or goes on with."""
        begun = re.findall(r"^([\w-]+): (?:runs|goes on)", self.output, re.MULTILINE)
        return begun[-1] if begun else None


@dataclass(frozen=True)
class Crashed:
    """A graph after all deaths, and after the run that nothing killed any more."""

    root: Path
    deaths: list[Death]
    end: Death


@pytest.fixture(scope="module")
def crashed(uninterrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    root = tmp_path_factory.mktemp("crashed") / "graph"
    recipe = copy_graph(uninterrupted, root)
    deaths = [_run(recipe, **{VARIABLE: wanted}) for wanted, _, _ in DEATHS]
    return Crashed(root, deaths, _run(recipe))


def _run(recipe: Path, **environment: str) -> Death:
    process = start(recipe, **environment)
    output, _ = process.communicate()
    return Death(process.returncode, output)


@pytest.mark.parametrize(
    "index", range(len(DEATHS)), ids=lambda index: "-".join(map(str, DEATHS[index][:2]))
)
def test_the_run_died_where_it_was_told_to(crashed: Crashed, index: int) -> None:
    (wanted, stage, code), death = DEATHS[index], crashed.deaths[index]
    assert f"failpoint {wanted.partition(':')[0]}: process" in death.output
    assert (death.stage, death.code) == (stage, code), death.output


def test_every_failpoint_was_deadly() -> None:
    assert {wanted.partition(":")[0] for wanted, _, _ in DEATHS} == set(FAILPOINTS)


def test_tensors_tokens_and_metrics_are_those_of_the_unkilled_run(
    crashed: Crashed, uninterrupted: Path
) -> None:
    assert crashed.end.code == 0, crashed.end.output
    assert list(differences(crashed.root, uninterrupted)) == []


@pytest.mark.parametrize("wanted", ["before-lunch", "before-pointer:0", "before-pointer:x"])
def test_a_failpoint_that_does_not_exist_is_refused(uninterrupted: Path, wanted: str) -> None:
    refused = _run(uninterrupted / "recipe.yaml", **{VARIABLE: wanted})
    assert refused.code == ExitCode.BAD_INPUT
    assert f"{VARIABLE}: found '{wanted}'; expected NAME or NAME:N" in refused.output
