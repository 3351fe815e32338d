"""Present the CPU to Megatron-Core as its accelerator, so that the real modules run on a laptop.

Megatron-Core 0.16.1 is written for `torch.cuda`. Every patch below is needed by that version (each
names what fails without it) and none touches an ordinary operator, so nothing is taxed. `install`
must run before the first Megatron-Core object is built; on a CUDA machine it is never called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._device

CPU = torch.device("cpu")

_FACTORIES = (
    "tensor", "zeros", "ones", "empty", "full", "arange", "as_tensor", "rand", "randn", "randint",
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like",
)  # fmt: skip


class _Inert:
    """Stands for a CUDA stream or event: CPU work is done when the call returns."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., _Inert]:
        return lambda *args, **kwargs: self

    def __enter__(self) -> _Inert:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


@functools.cache
def install() -> None:
    """Apply every patch once. Raises RuntimeError on a machine that has CUDA."""
    if torch.cuda.is_available():
        raise RuntimeError(
            "the CPU is only presented as an accelerator where there is no CUDA device"
        )
    _redirect_factories()
    _redirect_cuda_namespace()
    _redirect_tensor_methods()
    _patch_megatron_random()
    _patch_megatron_recompute()


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs and str(kwargs["device"]).startswith("cuda"):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return call


def _redirect_factories() -> None:
    """The gradient norm, the schedules and the grad scaler name `device="cuda"` literally."""
    # `with torch.device(...)` knows the factories by identity from its first use on; were that
    # after the replacement, it would do nothing, and transformers would not initialise its buffers.
    torch.utils._device._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _redirect_cuda_namespace() -> None:
    """Buffers and receive tensors ask for the current device; overlap code makes streams."""

    def nothing() -> Callable[..., None]:
        # A new function for each name: torch.compile refuses one object under several names.
        return lambda *args, **kwargs: None

    @contextmanager
    def stream(*args: object, **kwargs: object) -> Iterator[None]:
        yield

    replacements: dict[str, Any] = {
        "current_device": lambda: CPU,
        "device_count": lambda: 1,
        "set_device": nothing(),
        "synchronize": nothing(),
        "empty_cache": nothing(),
        "current_stream": lambda *args, **kwargs: _Inert(),
        "stream": stream,
        "Stream": _Inert,
        "Event": _Inert,
        # The CUDA versions are lazy calls: without CUDA they silently do nothing.
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "manual_seed": torch.default_generator.manual_seed,
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)


def _redirect_tensor_methods() -> None:
    """Checkpoint code moves tensors with `.cuda()`; optimizers compare `Tensor.type()` names."""

    def stay(self: Any, *args: object, **kwargs: object) -> Any:
        return self

    torch.Tensor.cuda = stay  # type: ignore[method-assign]
    torch.nn.Module.cuda = stay  # type: ignore[method-assign]
    original_type = torch.Tensor.type

    @functools.wraps(original_type)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original_type(self, *args, **kwargs)
        return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

    torch.Tensor.type = type_  # type: ignore[method-assign,assignment]


def _patch_megatron_random() -> None:
    """The RNG tracker behind dropout and full recomputation reads and writes the CUDA generator."""
    from megatron.core.tensor_parallel import random

    def get_state(*args: object, **kwargs: object) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(new_state: torch.Tensor, *args: object, **kwargs: object) -> None:
        torch.set_rng_state(new_state)

    random._get_cuda_rng_state = get_state
    random._set_cuda_rng_state = set_state


def _patch_megatron_recompute() -> None:
    """`CheckpointWithoutOutput` tests `fp8 is not None`: its default False calls TE (NameError)."""
    from megatron.core.tensor_parallel.random import CheckpointWithoutOutput

    original = CheckpointWithoutOutput.__init__

    @functools.wraps(original)
    def init(self: Any, fp8: Any = None, *args: Any, **kwargs: Any) -> None:
        original(self, fp8 or None, *args, **kwargs)

    CheckpointWithoutOutput.__init__ = init
