"""GPU checks: always collected; without CUDA they are skipped, and the session's end says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.accelerator.groups import Rendezvous, model_parallel, process_group
from megatron_soaes.checkpoint.import_hf import import_hf
from tests.gpu.curve import cpu_curve, train
from tests.gpu.material import make_model

HERE = Path(__file__).parent
REASON = "no CUDA device on this machine"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=REASON))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(REASON in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(
            f"{count} GPU checks were not run: {REASON}. On a GPU node, run "
            "`python -m benchmarks.gpu.run_all` (docs/guides/gpu-node.md)."
        )


@pytest.fixture(scope="session")
def groups() -> Iterator[None]:
    """The groups of a model that is not sharded."""
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        yield


@pytest.fixture
def transformer_engine(groups: None) -> None:
    """The checks are about its layers: the local ones must not stand in for them unnoticed."""
    assert this_device().has_transformer_engine, (
        "Transformer Engine is not installed; benchmarks/gpu/bring_transformer_engine.sh brings it"
    )


@pytest.fixture(scope="session")
def trained_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An HF directory and its checkpoint: what every loss curve starts from."""
    folder = tmp_path_factory.mktemp("curve")
    hf_dir = make_model(folder / "hf", "qwen3")
    import_hf(hf_dir, folder / "checkpoint", verify=False)
    return hf_dir, folder / "checkpoint"


@pytest.fixture(scope="session")
def fp32_curve(trained_model: tuple[Path, Path]) -> list[float]:
    """Losses of the first steps of the run in fp32 on the CPU."""
    return cpu_curve(*trained_model)


@pytest.fixture(scope="session")
def bf16_curve(groups: None, trained_model: tuple[Path, Path]) -> list[float]:
    """Losses of the run in bf16 on the GPU."""
    return train(*trained_model, {"dtype": "bf16"})[0]
