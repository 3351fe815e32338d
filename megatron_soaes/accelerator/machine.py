"""What this machine is: its GPU, its packages, and what each missing piece would give.

No torch at module level, so that a login node or a laptop can be asked without it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Generation = Literal["ampere", "ada", "hopper", "blackwell"]

FP8_RECIPES: dict[Generation, tuple[str, ...]] = {
    "ampere": (),
    "ada": ("delayed", "tensorwise"),
    "hopper": ("delayed", "tensorwise", "blockwise"),
    "blackwell": ("delayed", "tensorwise", "mxfp8"),
}
"""FP8 recipes of Transformer Engine that a generation's tensor cores can run."""

PACKAGES = (
    "torch",
    "megatron-core",
    "transformer-engine",
    "flash-attn",
    "apex",
    "triton",
    "transformers",
    "nemo-toolkit",
    "tensorrt-llm",
)
COMMANDS = ("trtllm-build", "sbatch")


@dataclass(frozen=True)
class Machine:
    """One node as this process sees it."""

    device: Literal["cuda", "cpu"]
    gpu_name: str | None
    gpu_count: int
    compute_capability: tuple[int, int] | None
    gpu_memory_bytes: int
    """Of one GPU; 0 without one."""
    cores: int
    """Cores this process may run on."""
    memory_bytes: int
    """Main memory, or the container's limit when that is smaller."""
    versions: Mapping[str, str]
    """Version of each package of `PACKAGES` that is installed."""
    apex: Literal["nvidia", "unrelated"] | None
    """`nvidia` with compiled kernels, or the unrelated PyPI package of the same name."""
    commands: Mapping[str, str]
    """Where each command of `COMMANDS` that is on PATH lies."""

    @property
    def generation(self) -> Generation | None:
        """The GPU's architecture, None for a CPU and for architectures we know nothing about."""
        return None if self.compute_capability is None else generation_of(self.compute_capability)

    @property
    def fp8_recipes(self) -> tuple[str, ...]:
        """FP8 recipes the GPU itself can do, whether or not Transformer Engine is installed."""
        return FP8_RECIPES[self.generation] if self.generation else ()


@dataclass(frozen=True)
class Finding:
    """One line of `soaes doctor`."""

    component: str
    state: str
    enables: str
    """What is there because of it, or what the missing piece would give."""


def generation_of(capability: tuple[int, int]) -> Generation | None:
    """Architecture of a CUDA compute capability (CUDA C++ Programming Guide, table of GPUs)."""
    if capability == (8, 9):
        return "ada"
    return {8: "ampere", 9: "hopper", 10: "blackwell"}.get(capability[0])  # type: ignore[return-value]


def read_machine() -> Machine:
    """Look at this node; imports torch if it is installed, nothing else."""
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    found_commands = {name: path for name in COMMANDS if (path := shutil.which(name))}
    name, count, capability, memory = _gpus() if "torch" in versions else (None, 0, None, 0)
    return Machine(
        device="cuda" if count else "cpu",
        gpu_name=name,
        gpu_count=count,
        compute_capability=capability,
        gpu_memory_bytes=memory,
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=_memory_bytes(),
        versions=versions,
        apex=_which_apex(),
        commands=found_commands,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[str | None, int, tuple[int, int] | None, int]:
    """Name, count, compute capability and memory in bytes of the GPUs torch sees."""
    import torch

    if not torch.cuda.is_available():
        return None, 0, None, 0
    properties = torch.cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    return properties.name, torch.cuda.device_count(), capability, properties.total_memory


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return physical if text == "max" else min(physical, int(text))


def _which_apex() -> Literal["nvidia", "unrelated"] | None:
    """Tell NVIDIA's apex from PyPI's Pyramid package by its files: importing it would run either.

    NVIDIA's apex without compiled kernels (`amp_C`) brings nothing that we use and counts as none.
    """
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not any((folder / "optimizers").is_dir() for folder in folders):
        return "unrelated"
    return "nvidia" if importlib.util.find_spec("amp_C") else None


def doctor(machine: Machine | None = None) -> list[Finding]:
    """What is active on `machine` (by default this one) and what each missing piece would give."""
    machine = machine or read_machine()
    return [
        _package(machine, "torch", "Everything but data preparation and recipe checks."),
        _cuda(machine),
        _package(machine, "megatron-core", "Training, checkpoints and layouts."),
        _package(
            machine,
            "transformer-engine",
            "Fused layers, FP8 and ring attention on a GPU; without it the local layers compute "
            "the same with PyTorch's attention.",
        ),
        _fp8(machine),
        _attention(machine),
        _apex(machine),
        _command(
            machine,
            "TensorRT-LLM",
            "trtllm-build",
            "Engines can be built here; without it the export stops at TensorRT-LLM checkpoints.",
        ),
        _command(
            machine,
            "Slurm",
            "sbatch",
            "Runs can be submitted as a chain of jobs; without it they run on this node only.",
        ),
    ]


def _package(machine: Machine, name: str, enables: str) -> Finding:
    return Finding(name, machine.versions.get(name, "not installed"), enables)


def _cuda(machine: Machine) -> Finding:
    if machine.device == "cpu":
        return Finding(
            "CUDA",
            f"no GPU ({machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB)",
            "Training at full size; the CPU runs rehearsals of the same recipe over gloo.",
        )
    return Finding(
        "CUDA",
        f"{machine.gpu_count} x {machine.gpu_name}, {machine.gpu_memory_bytes / 2**30:.0f} GiB",
        "Training on the GPU, with NCCL between processes.",
    )


def _fp8(machine: Machine) -> Finding:
    able = ", ".join(machine.fp8_recipes)
    if not able:
        state = "not on this GPU" if machine.device == "cuda" else "no GPU"
        return Finding("FP8", state, "FP8 recipes need an Ada, Hopper or Blackwell GPU.")
    if "transformer-engine" not in machine.versions:
        return Finding("FP8", "needs transformer-engine", f"This GPU could then run: {able}.")
    return Finding("FP8", able, "Values of `precision.fp8.recipe` that this node can run.")


def _attention(machine: Machine) -> Finding:
    if machine.device == "cpu":
        return Finding(
            "attention", "PyTorch SDPA on the CPU", "Flash and cuDNN attention need a GPU."
        )
    flash = machine.versions.get("flash-attn")
    if "transformer-engine" not in machine.versions:
        return Finding(
            "attention",
            "PyTorch SDPA",
            "With transformer-engine: cuDNN attention, and flash-attn where it is installed.",
        )
    state = f"cuDNN, flash-attn {flash}" if flash else "cuDNN (flash-attn not installed)"
    return Finding("attention", state, "Transformer Engine chooses the faster of what is there.")


def _apex(machine: Machine) -> Finding:
    if machine.apex == "unrelated":
        return Finding(
            "apex",
            "an unrelated package of the same name",
            "Run `pip uninstall apex`: PyPI's apex is not NVIDIA's, which is built from source.",
        )
    state = "NVIDIA's fused kernels" if machine.apex else "not installed"
    return Finding(
        "apex", state, "Fused gradient accumulation and optimizer kernels on a GPU (from source)."
    )


def _command(machine: Machine, component: str, command: str, enables: str) -> Finding:
    return Finding(component, machine.commands.get(command, f"no {command} on PATH"), enables)
