"""Every run that the tests of this room look at, made once."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.accelerator.groups import Rendezvous, model_parallel, process_group
from megatron_soaes.accelerator.launch import launch
from tests.training import meddling
from tests.training.distilling import make_captured_job, make_online_job, make_store
from tests.training.material import make_job, make_material, make_sft_job
from tests.training.two_processes import BF16
from tests.training.watched import run

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="package")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the models and the datasets."""
    folder = tmp_path_factory.mktemp("material")
    make_material(folder)
    return folder


@pytest.fixture(scope="package")
def one_process() -> Iterator[None]:
    """The groups of a run without other ranks; its signal handlers end with it."""
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture(scope="package")
def alone(material: Path, one_process: None) -> Path:
    """Folder of the runs of one process."""
    runs = material / "runs"
    run(make_job(material, runs / "one"))
    run(make_job(material, runs / "one-qwen2", "qwen2"))
    run(make_job(material, runs / "one-deep", "deep"))
    run(make_sft_job(material, runs / "one-sft"))
    make_store(material)
    run(make_online_job(material, runs / "one-online"))
    run(make_captured_job(material, runs / "one-captured"))
    run(make_captured_job(material, runs / "one-captured-deep", "deep"))
    run(make_job(material, runs / "one-stopped"), meddling.terminate_in(7))
    shutil.copytree(runs / "one-stopped", runs / "one-resumed")
    run(make_job(material, runs / "one-resumed"))
    run(make_job(material, runs / "one-bf16", **BF16))
    often: dict[str, Any] = {**BF16, "checkpoints": {"every": 2}}
    with pytest.raises(RuntimeError, match="crash"):
        run(make_job(material, runs / "one-bf16-resumed", **often), meddling.crash_in(6))
    run(make_job(material, runs / "one-bf16-resumed", **often))
    return runs


@pytest.fixture(scope="package")
def together(material: Path, alone: Path) -> Path:
    """Folder of all runs, those on two processes too."""
    code = launch("tests.training.two_processes", [str(material)], 2, material / "logs")
    assert code == 0, (material / "logs" / "rank1.log").read_text(encoding="utf-8")
    return alone


@pytest.fixture(scope="package")
def four(material: Path, alone: Path) -> Path:
    """Folder of the runs on four processes."""
    code = launch("tests.training.four_processes", [str(material)], 4, material / "logs4")
    assert code == 0, (material / "logs4" / "rank1.log").read_text(encoding="utf-8")
    return alone
