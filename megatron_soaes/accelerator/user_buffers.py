"""Transformer Engine's user buffers: memory that the GPUs of a tensor-parallel group share, so that
parts of activations are exchanged during the matrix products they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def user_buffers(
    tokens: int, hidden: int, tensor_parallel: int, *, fp8: bool, bf16: bool
) -> Iterator[None]:
    """Buffers for activations [tokens, hidden] for the block (collective over the world).

    `tokens` are those of a whole micro-batch; `fp8` and `bf16` say what its layers exchange. The
    layers that use them are built and run within the block. The names are those of Transformer
    Engine 2.11; nothing but Transformer Engine on GPUs can run it.
    """
    from transformer_engine.pytorch.module import base

    modes = base.UserBufferQuantizationMode
    base.initialize_ub(
        [tokens, hidden],
        tensor_parallel,
        quantization_modes=[*[modes.FP8] * fp8, *[modes.NONE] * bf16],
        bootstrap_backend="nccl",
    )
    try:
        yield
    finally:
        base.destroy_ub()
