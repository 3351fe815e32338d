"""A reduce-scatter that does not move twice the data over gloo."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, Work


class _Finished(Work):
    """The handle of work that was done when the call returned."""

    def wait(self, timeout: object = None) -> bool:
        return True


def reduce_scatter(
    output: Tensor,
    input: Tensor,
    op: ReduceOp.RedOpType = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """`torch.distributed.reduce_scatter_tensor`, sums added in the order of the ranks.

    torch's gloo backend reduces everything everywhere and keeps a part; exchanging the parts and
    adding them takes half the time on two ranks. Other operations go to torch.
    """
    if op != ReduceOp.SUM:
        return torch.distributed.reduce_scatter_tensor(output, input, op, group, async_op)
    ranks = torch.distributed.get_world_size(group)
    if ranks == 1:
        if output.data_ptr() != input.data_ptr():
            output.copy_(input)
        return _Finished() if async_op else None
    parts = torch.empty_like(input)
    torch.distributed.all_to_all_single(parts, input, group=group)
    torch.sum(parts.view(ranks, *output.shape), dim=0, out=output)
    return _Finished() if async_op else None


@functools.cache
def install() -> None:
    """Use it for sequence parallelism and gradients (Megatron-Core 0.16.1 holds it by name)."""
    from megatron.core.distributed import param_and_grad_buffer
    from megatron.core.tensor_parallel import layers, mappings

    for module in (layers, mappings, param_and_grad_buffer):
        module.dist_reduce_scatter_func = reduce_scatter
