"""The MLPs of a model recorded as CUDA graphs, each launched at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from megatron.core.num_microbatches_calculator import (
    init_num_microbatches_calculator,
    unset_num_microbatches_calculator,
)
from megatron.core.transformer.cuda_graphs import TECudaGraphHelper

from megatron_soaes.accelerator.groups import world_rank
from megatron_soaes.recipe.schema import TrainingStage
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.engine import Engine


@contextmanager
def mlp_graphs(engine: Engine, stage: TrainingStage, layout: Layout) -> Iterator[None]:
    """Record the graphs of `stage.kernels.mlp_graphs` and train with them for the block.

    They are recorded before the first step, and at a resume before the next, so that every step of
    a run is computed by the same kernels. Nothing happens where the stage does not ask for them.
    """
    if not stage.kernels.mlp_graphs:
        yield
        return
    # A micro-batch is one row, its samples one after the other.
    tokens = stage.sequence_length * stage.micro_batch_size
    config = engine.chunks[0].config
    recorder = TECudaGraphHelper(engine.wrapped, config, tokens, 1, [engine.optimizer])
    with ExitStack() as stack:
        # Megatron-Core asks this global for how many micro-batches are under way in a pipeline.
        init_num_microbatches_calculator(
            world_rank(), None, stage.global_batch_size, stage.micro_batch_size,
            layout.data_parallel,
        )  # fmt: skip
        stack.callback(unset_num_microbatches_calculator)
        _forget_random_streams()
        recorder.create_cudagraphs()
        stack.callback(recorder.delete_cuda_graphs)
        yield


def _forget_random_streams() -> None:
    """An MLP without dropout draws no number, so its graphs need no random stream.

    Each attention layer tells Transformer Engine 2.11 of Megatron-Core's streams, which are tensors
    here, and recording asks each of them for what only a generator has (graph.py). The streams
    themselves stay as they are.
    """
    from transformer_engine.pytorch.distributed import set_all_rng_states

    set_all_rng_states({})
