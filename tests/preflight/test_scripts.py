"""What bash has to say about the jobs and about the environment file."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_soaes.pipeline.slurm.submission import SCRIPTS, chain_of
from megatron_soaes.preflight.findings import look
from megatron_soaes.preflight.scripts import check_scripts
from tests.preflight.conftest import look_at, recipe_in


@pytest.fixture(autouse=True)
def no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SOAES", "SOAES_PYTHON"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("if [\n", "environment.sh: found "),
        ("version: 1\nmodels:\n  target: qwen\n", "leaves SOAES and SOAES_PYTHON unset"),
        ("export SOAES=/opt/soaes\n", "leaves SOAES_PYTHON unset"),
    ],
)
def test_a_file_that_is_no_environment_is_found(
    sound: Path, tmp_path: Path, content: str, expected: str
) -> None:
    environment = tmp_path / "environment.sh"
    environment.write_text(content, "utf-8")
    (wrong,) = look_at(sound, environment=environment).wrong
    assert wrong.startswith(str(environment))
    assert expected in wrong


def test_a_copy_of_the_environment_file_is_well(sound: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment.sh"
    environment.write_text((SCRIPTS / "environment.sh").read_text("utf-8"), "utf-8")
    assert look_at(sound, environment=environment).wrong == []


def test_jobs_that_slurm_would_not_take_are_named(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins: this Slurm has no room for a stage of 16 processes."""
    sbatch = 'case "$*" in *nodes=2*) echo "too many nodes" >&2; exit 1;; esac'
    for name, script in {"scontrol": "exit 0", "sbatch": sbatch}.items():
        file = tmp_path / name
        file.write_text(f"#!/bin/bash\n{script}\n", "utf-8")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = look("jobs", check_scripts(chain_of(recipe_in(sound))))
    assert [wrong.partition(";")[0] for wrong in found.wrong] == [
        "job cpt: found too many nodes",
        "job sft: found too many nodes",
    ]
    assert not any("takes" in line for line in found.well)


def test_the_chain_that_is_checked_is_the_one_that_was_made(sound: Path) -> None:
    found = look("jobs", check_scripts(chain_of(recipe_in(sound))))
    assert found.well[0] == "10 jobs; 0 stages done already, which need none"
    assert found.wrong == ()
