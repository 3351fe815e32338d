"""The models, the references and the runs of several processes, made once for the room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_soaes.accelerator.groups import Rendezvous, model_parallel, process_group
from megatron_soaes.accelerator.launch import launch
from megatron_soaes.decoding.interface import LogLikelihood
from tests.decoding.material import (
    MODELS,
    greedy_by_transformers,
    likelihoods_by_transformers,
    make_models,
)


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of NAME/{hf,imported}."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture(scope="package")
def greedy(models: Path) -> dict[str, list[list[int]]]:
    """Greedy tokens by transformers, by model, one list a prompt."""
    return {name: greedy_by_transformers(models / name / "hf", cached=True) for name in MODELS}


@pytest.fixture(scope="package")
def likelihoods(models: Path) -> dict[str, list[LogLikelihood]]:
    """Likelihoods by transformers, by model, one a request."""
    return {name: likelihoods_by_transformers(models / name / "hf") for name in MODELS}


@pytest.fixture(scope="package")
def one_process() -> Iterator[None]:
    """The groups of a model that is not sharded."""
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        yield


@pytest.fixture(scope="package")
def together(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes wrote, see `two_processes`."""
    out = tmp_path_factory.mktemp("together")
    arguments = [str(models), str(out)]
    code = launch("tests.decoding.two_processes", arguments, 2, out / "logs")
    assert code == 0, (out / "logs" / "rank1.log").read_text(encoding="utf-8")
    return out
