"""Are the nodes of a job sound? `python -m megatron_soaes.accelerator.health`, one task a GPU.

Run by the job scripts before training: a node without one of its GPUs, with a full disk or a wrong
clock, or slower than the others, is cheaper found now than by a job that hangs. The limits are
those of the environment file (`SOAES_*`). Ends with `ExitCode.UNSOUND` and appends each node to be
left out to `FOLDER/bad-nodes`, as its name, a tab and the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistError, ProcessGroup

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.accelerator.groups import (
    Rendezvous,
    process_group,
    rendezvous_from_environment,
)
from megatron_soaes.errors import ExitCode

BAD_NODES = "bad-nodes"
ARRIVAL_S = 120.0
"""How long a node may take to start its tasks: a cold Python on a shared file system is slow."""
MESSAGE_BYTES = {"cuda": 2**30, "cpu": 2**22}
"""Of the all-reduce: large enough that latency does not count."""
ROUNDS = 5
GB = 1e9


@dataclass(frozen=True)
class Floors:
    """What a node must have."""

    gpus: int
    disk_gb: float
    """Free where the run is written."""
    clock_s: float
    """Largest distance to the median of all clocks."""
    allreduce_gbs: float
    """Bus bandwidth."""


@dataclass(frozen=True)
class Sign:
    """What a rank says of its node."""

    gpus: int
    disk_gb: float
    clock: float
    """Seconds since 1970."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine the nodes of this job; the same `ExitCode` on every rank that has come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the list")
    parser.add_argument("--nodes", required=True, help="names, by commas, in the order of ranks")
    parser.add_argument("--gpus-per-node", type=int, default=0)
    options = parser.parse_args(arguments)
    floors = Floors(
        options.gpus_per_node,
        float(os.environ.get("SOAES_DISK_FLOOR_GB", "0")),
        float(os.environ.get("SOAES_CLOCK_SKEW_S", "5")),
        float(os.environ.get("SOAES_ALLREDUCE_FLOOR_GBS", "0")),
    )
    return examine(rendezvous_from_environment(), options.nodes.split(","), options.folder, floors)


def examine(
    rendezvous: Rendezvous, nodes: Sequence[str], folder: Path, floors: Floors,
    arrival_s: float = ARRIVAL_S,
) -> int:  # fmt: skip
    """Gather the signs of all ranks, judge them on rank 0, then measure the network.

    `nodes` are the names in the order of ranks, each with equally many of them.
    """
    rank, world = rendezvous.rank, rendezvous.world_size
    homes = [nodes[one * len(nodes) // world] for one in range(world)]
    missing = {homes[0]: "its first rank gives no answer"}
    try:
        # The port after the group's own, which this check uses, too.
        store = TCPStore(
            rendezvous.address, rendezvous.port + 1, is_master=rank == 0,
            # Longer than the first rank waits for the others.
            timeout=timedelta(seconds=2 * arrival_s), wait_for_workers=False,
        )  # fmt: skip
        store.set(f"here/{rank}", "")
        if rank == 0:
            here = _wait_for(store, world, arrival_s)
            store.set("go", "")
        # All look at their clocks at one moment, whenever they came.
        store.get("go")
        store.set(f"sign/{rank}", json.dumps(asdict(_sign(folder))))
        if rank == 0:
            signs = [_sign_of(store, one) if came else None for one, came in enumerate(here)]
            store.set("faults", json.dumps(faults_of(signs, homes, floors)))
        faults = json.loads(store.get("faults"))
    except DistError:
        faults = missing
    if not faults:
        with process_group(rendezvous):
            faults = _slow_nodes(homes, floors)
    # Where the first rank is the one that is missing, the last one tells of it.
    if rank == (world - 1 if faults == missing else 0):
        _report(faults, folder)
    return ExitCode.UNSOUND if faults else ExitCode.OK


def _sign(folder: Path) -> Sign:
    free = shutil.disk_usage(folder).free / GB
    return Sign(torch.cuda.device_count(), free, time.time())


def _wait_for(store: TCPStore, world: int, arrival_s: float) -> list[bool]:
    """Whether each rank has come within the time."""
    deadline = time.monotonic() + arrival_s
    came = []
    for rank in range(world):
        try:
            store.wait([f"here/{rank}"], timedelta(seconds=max(0.1, deadline - time.monotonic())))
            came.append(True)
        except DistError:
            came.append(False)
    return came


def _sign_of(store: TCPStore, rank: int) -> Sign | None:
    try:
        return Sign(**json.loads(store.get(f"sign/{rank}")))
    except DistError:
        return None


def faults_of(signs: Sequence[Sign | None], homes: Sequence[str], floors: Floors) -> dict[str, str]:
    """Why each unsound node is unsound; `homes` is the node of each rank."""
    clocks = [sign.clock for sign in signs if sign]
    middle = statistics.median(clocks)
    found: dict[str, str] = {}
    for sign, node in zip(signs, homes, strict=True):
        if sign is None:
            found[node] = "a rank did not come"
        elif sign.gpus < floors.gpus:
            found[node] = f"{sign.gpus} of {floors.gpus} GPUs"
        elif sign.disk_gb < floors.disk_gb:
            found[node] = f"{sign.disk_gb:.1f} GB free, not {floors.disk_gb:g}"
        elif abs(sign.clock - middle) > floors.clock_s:
            found[node] = f"its clock is {sign.clock - middle:+.1f} s off"
    return found


def _slow_nodes(homes: Sequence[str], floors: Floors) -> dict[str, str]:
    """Nodes whose own all-reduce is below the floor; all of them when only the whole one is."""
    rank = torch.distributed.get_rank()
    inside: dict[str, float] = {}
    for node in dict.fromkeys(homes):
        members = [one for one, home in enumerate(homes) if home == node]
        group = torch.distributed.new_group(members)
        if rank in members and len(members) > 1:
            inside[node] = bus_bandwidth(group)
    everywhere = bus_bandwidth(torch.distributed.group.WORLD) if len(homes) > 1 else None
    gathered: list[Mapping[str, float]] = [{} for _ in homes]
    torch.distributed.all_gather_object(gathered, inside)
    by_node = {node: speed for one in gathered for node, speed in one.items()}
    if rank == 0:
        print(f"health: all-reduce {_speeds(by_node, everywhere)}", flush=True)
    floor = floors.allreduce_gbs
    slow = {node: f"all-reduce of {v:.1f} GB/s" for node, v in by_node.items() if v < floor}
    if slow or everywhere is None or everywhere >= floor:
        return slow
    return {"": f"all-reduce over all nodes of {everywhere:.1f} GB/s, no node alone is to blame"}


def _speeds(by_node: Mapping[str, float], everywhere: float | None) -> str:
    parts = [f"{node} {speed:.1f}" for node, speed in by_node.items()]
    return ", ".join([*parts, *([f"all {everywhere:.1f}"] if everywhere else [])]) + " GB/s"


def bus_bandwidth(group: ProcessGroup | None) -> float:
    """GB/s of an all-reduce, the slowest rank's (collective over `group`).

    Bus bandwidth as nccl-tests define it: bytes / seconds * 2 (n - 1) / n, comparable between
    numbers of ranks (github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md).
    """
    device = this_device()
    ranks = torch.distributed.get_world_size(group)
    size = MESSAGE_BYTES[device.kind]
    message = torch.ones(size // 4, device=device.torch_device)
    torch.distributed.all_reduce(message, group=group)
    device.synchronize()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        torch.distributed.all_reduce(message, group=group)
    device.synchronize()
    seconds = torch.tensor([(time.perf_counter() - started) / ROUNDS], device=device.torch_device)
    torch.distributed.all_reduce(seconds, torch.distributed.ReduceOp.MAX, group=group)
    return float(size / seconds.item() * 2 * (ranks - 1) / ranks / GB)


def _report(faults: Mapping[str, str], folder: Path) -> None:
    if not faults:
        print("health: every node is sound", flush=True)
        return
    lines = [f"{node}\t{why}\n" for node, why in faults.items() if node]
    for node, why in faults.items():
        print(f"health: {node or 'the network'}: {why}", file=sys.stderr, flush=True)
    # One short write: jobs side by side may append, too.
    with (folder / BAD_NODES).open("a", encoding="utf-8") as stream:
        stream.write("".join(lines))


if __name__ == "__main__":
    sys.exit(main())
