"""Process groups and random streams of one training layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b

import torch
from torch._C._distributed_c10d import HashStore, Store, TCPStore

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.errors import UserError


@dataclass(frozen=True)
class Rendezvous:
    """Who this process is and where the group meets."""

    rank: int
    world_size: int
    address: str
    port: int


def rendezvous_from_environment() -> Rendezvous:
    """Read torchrun's variables (RANK, WORLD_SIZE, ...) or those of a Slurm `srun` task.

    Under srun, MASTER_ADDR and MASTER_PORT must be exported by the batch script, which knows the
    job's first node. A process started alone is rank 0 of 1.
    """
    env = os.environ
    if "RANK" in env:
        rank, world_size = int(env["RANK"]), int(env["WORLD_SIZE"])
    elif "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
        rank, world_size = int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"])
    else:
        rank, world_size = 0, 1
    if world_size > 1 and not ("MASTER_ADDR" in env and "MASTER_PORT" in env):
        raise UserError(
            "environment", "no MASTER_ADDR and MASTER_PORT", "the rendezvous of the process group",
            "Start the job with torchrun, `soaes run` or the scripts in slurm/.",
        )  # fmt: skip
    return Rendezvous(
        rank, world_size, env.get("MASTER_ADDR", "127.0.0.1"), int(env.get("MASTER_PORT", "0"))
    )


@contextmanager
def process_group(rendezvous: Rendezvous, timeout_s: float = 1800.0) -> Iterator[None]:
    """The default process group for the time of the block, destroyed at its end."""
    device = this_device()
    if rendezvous.world_size == 1:
        store: Store = HashStore()
    else:
        store = TCPStore(
            rendezvous.address,
            rendezvous.port,
            rendezvous.world_size,
            is_master=rendezvous.rank == 0,
            timeout=timedelta(seconds=min(timeout_s, 300)),
        )
    torch.distributed.init_process_group(
        device.backend,
        store=store,
        rank=rendezvous.rank,
        world_size=rendezvous.world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def model_parallel(
    tensor: int = 1, pipeline: int = 1, virtual_pipeline: int = 1, context: int = 1
) -> Iterator[None]:
    """Megatron-Core's parallel groups for the time of the block; data parallel is what is left.

    The world size must be a multiple of tensor * pipeline * context.
    """
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=virtual_pipeline if virtual_pipeline > 1 else None,
        context_parallel_size=context,
    )
    # Tensor-parallel modules can only be built once the random streams exist.
    seed_step(0, 0)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()


def seed_step(seed: int, step: int) -> None:
    """Set every random stream as a function of (seed, step) and the rank's place in the layout.

    Nothing random is carried from one step to the next, so a resumed run needs no saved generator
    state and repeats the interrupted one bitwise. Which streams agree between ranks (the default
    one) and which differ between tensor-parallel ranks (inside sharded regions) is Megatron-Core's.
    """
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    digest = blake2b(f"{seed}/{step}".encode(), digest_size=4).digest()
    step_seed = int.from_bytes(digest, "big") >> 1
    torch.manual_seed(step_seed)
    model_parallel_cuda_manual_seed(step_seed)


def world_rank() -> int:
    """This process's rank, 0 before a group exists."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def all_true(flag: bool) -> bool:
    """Whether `flag` holds on every rank of the world (collective)."""
    value = torch.tensor([1 if flag else 0], dtype=torch.int32, device=this_device().torch_device)
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MIN)
    return bool(value.item())


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Let rank 0 run the block before the others, which read the files it makes (collective)."""
    if world_rank() != 0:
        torch.distributed.barrier()
    yield
    if world_rank() == 0:
        torch.distributed.barrier()
