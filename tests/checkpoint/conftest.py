"""One process group for all conversions of a test run, and models that several tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_soaes.accelerator.groups import Rendezvous, model_parallel, process_group
from megatron_soaes.checkpoint.import_hf import import_hf
from tests.checkpoint.tiny import make_model


@pytest.fixture(scope="package")
def one_process() -> Iterator[None]:
    """The groups of a model that is not sharded."""
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        yield


@pytest.fixture
def hf_dir(tmp_path: Path) -> Path:
    """An untied Llama that a test may damage."""
    return make_model(tmp_path / "hf")


@pytest.fixture
def checkpoint_root(tmp_path: Path, hf_dir: Path) -> Path:
    """The checkpoint of `hf_dir`, imported without verification."""
    import_hf(hf_dir, tmp_path / "checkpoint", verify=False)
    return tmp_path / "checkpoint"


@pytest.fixture(scope="package")
def layout_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the saves and loads that tests/checkpoint/layouts.py does in several layouts."""
    folder = tmp_path_factory.mktemp("layouts")
    command = [sys.executable, "-W", "ignore", "-m", "tests.checkpoint.layouts", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder
