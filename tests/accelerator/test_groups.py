"""Who this process is, and random streams that need no saved state."""

from __future__ import annotations

import pytest
import torch

from megatron_soaes.accelerator.groups import (
    Rendezvous,
    all_true,
    model_parallel,
    process_group,
    rendezvous_from_environment,
    seed_step,
    world_rank,
)
from megatron_soaes.errors import UserError

VARIABLES = [
    "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS",
    "SLURM_STEP_ID",
]  # fmt: skip
MASTER = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_STEP_ID": "0"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher's variables are set."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def set_all(environment: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", **MASTER}, Rendezvous(3, 8, "node1", 29500)),
        ({**SLURM, **MASTER}, Rendezvous(5, 16, "node1", 29500)),
        ({"RANK": "3", "WORLD_SIZE": "8", **SLURM, **MASTER}, Rendezvous(3, 8, "node1", 29500)),
        ({}, Rendezvous(0, 1, "127.0.0.1", 0)),
        # A batch script or an salloc shell is no task of a step.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, Rendezvous(0, 1, "127.0.0.1", 0)),
    ],
    ids=["torchrun", "srun", "torchrun under srun", "alone", "in an allocation"],
)
def test_a_launcher_says_who_this_is(
    environment: pytest.MonkeyPatch, variables: dict[str, str], expected: Rendezvous
) -> None:
    set_all(environment, variables)
    assert rendezvous_from_environment() == expected


@pytest.mark.parametrize("given", [{}, {"MASTER_ADDR": "node1"}, {"MASTER_PORT": "29500"}])
def test_srun_without_a_meeting_point_is_refused(
    environment: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    set_all(environment, {**SLURM, **given})
    with pytest.raises(UserError) as caught:
        rendezvous_from_environment()
    assert "MASTER_ADDR and MASTER_PORT" in caught.value.found
    assert "slurm/" in caught.value.fix


def draws(seed: int, step: int) -> list[float]:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    seed_step(seed, step)
    common = torch.rand(3).tolist()
    with get_cuda_rng_tracker().fork():
        return common + torch.rand(3).tolist()


def test_random_numbers_are_a_function_of_seed_and_step() -> None:
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        first = draws(1, 7)
        others = [draws(1, 8), draws(2, 7), draws(17, 0), draws(7, 1)]
        torch.rand(100)
        assert draws(1, 7) == first, "nothing is carried from step to step"
    assert len({tuple(numbers) for numbers in [first, *others]}) == 5
    assert first[:3] != first[3:]


def test_a_world_of_one() -> None:
    assert world_rank() == 0
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)):
        assert world_rank() == 0
        assert all_true(True)
        assert not all_true(False)
    assert not torch.distributed.is_initialized()


def test_groups_end_with_their_block_even_after_an_error() -> None:
    from megatron.core import parallel_state

    with (
        pytest.raises(RuntimeError, match="inside"),
        process_group(Rendezvous(0, 1, "127.0.0.1", 0)),
        model_parallel(),
    ):
        raise RuntimeError("inside")
    assert not torch.distributed.is_initialized()
    assert not parallel_state.model_parallel_is_initialized()
