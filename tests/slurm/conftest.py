"""One cluster for all tests of this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_soaes.accelerator.launch import free_port
from tests.slurm.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # Not pytest's own folder: munged wants parents that others may search but not write.
    folder = Path(tempfile.mkdtemp(prefix="soaes-slurm-"))
    cluster = Cluster(folder, 16000 + free_port() % 1000 * 10)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
