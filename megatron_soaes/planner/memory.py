"""Bytes, by arithmetic: memory of each rank, checkpoints and teacher stores on the disk.

Weights, gradients and optimizer states are exact but for the padding of Megatron-Core's buffers (at
most 64 numbers a parameter). Saved activations are those of `activations`. What a backward pass
works with, what a save gathers and the margin are estimates, made to be rather too large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from megatron_soaes.planner.activations import (
    NO_RECOMPUTE,
    WIDTHS,
    Implementation,
    Sizes,
    frequencies_bytes,
    kept_logits_bytes,
    layer_bytes,
    logits_bytes,
    peak_bytes,
    recomputed_bytes,
    sizes_of,
)
from megatron_soaes.planner.lasting import (
    fp8_copy_bytes,
    gradient_width,
    state_width,
    update_width,
    weight_bytes,
)
from megatron_soaes.planner.parameters import is_last, layers_of, rank_parameters
from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.schema import CaptureStage

LOSS_CHUNK_BYTES = 256 << 20
"""fp32 logits that the losses work on at once on a GPU (losses/vocab_parallel.py)."""
LOSS_CHUNKS = 2
"""Such chunks at once in the cross entropy: the logits and their log-softmax."""
DIVERGENCE_CHUNKS = 5
"""The same with a teacher beside: both log-probabilities, and up to three terms of a divergence."""
RUNTIME_BYTES = 3 << 30
"""Assumed, not measured: the CUDA context, NCCL's buffers, workspaces of cuBLAS and cuDNN."""
FRAGMENTATION = 0.05
"""Assumed, not measured: the share of what a step allocates that the allocator cannot use."""
BUCKET_NUMBERS = 40_000_000
BUCKET_NUMBERS_PER_REPLICA = 1_000_000
"""Megatron-Core 0.16.1 cuts gradients that are reduced beside the backward pass into buckets of
the larger of the two (distributed_data_parallel.py)."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes on a rank of one pipeline stage when it needs most."""

    weights: int
    gradients: int
    optimizer: int
    """Main weights and moments, this rank's share."""
    activations: int
    """Saved by the micro-batches in flight, and what the backward pass of one layer works with."""
    logits: int
    """Of one micro-batch with their gradient and what the loss works with; 0 but on the last."""
    fp8_copies: int
    """Of the weights, kept from one micro-batch of a step to the next."""
    teacher: int
    """Models that are not trained: weights, FP8 copies, one layer's forward pass and logits."""
    updating: int
    """Lower-precision state that is widened while the optimizer works, after the passes."""
    saving: int
    """What a save gathers on the GPU, when nothing of a step is there."""
    margin: int
    """See RUNTIME_BYTES and FRAGMENTATION."""

    @property
    def lasting(self) -> int:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimizer + self.fp8_copies + self.teacher

    @property
    def total(self) -> int:
        """All of it, but of passes, update and save the largest: never two of them at once."""
        return self.allocated + self.margin

    @property
    def allocated(self) -> int:
        """All but the margin: what PyTorch's allocator gives out at most."""
        return self.lasting + max(self.activations + self.logits, self.updating, self.saving)


def rank_memory(
    workload: Workload, stage: int, implementation: Implementation = "transformer_engine"
) -> RankMemory:
    """What each rank of a pipeline stage needs; the same on all its tensor-parallel ranks.

    `implementation` says whose layers are counted, see `activations`. Weights are bf16 or fp32.
    """
    parameters = rank_parameters(workload, stage)
    share = math.ceil(parameters / _sharing(workload))
    trained = workload.optimizer is not None
    memory = RankMemory(
        weights=weight_bytes(workload, stage),
        gradients=parameters * gradient_width(workload) if trained else 0,
        optimizer=share * state_width(workload) if trained else 0,
        activations=_activations(workload, stage, implementation),
        logits=_logits(workload) if is_last(workload.layout, stage) else 0,
        fp8_copies=fp8_copy_bytes(workload, stage),
        teacher=sum(_read_only(one, stage, implementation) for one in workload.read_only),
        updating=share * update_width(workload) if trained else 0,
        saving=_saving(workload, stage, parameters) if trained else 0,
        margin=0,
    )
    return replace(memory, margin=RUNTIME_BYTES + math.ceil(FRAGMENTATION * memory.total))


def _sharing(workload: Workload) -> int:
    """Ranks among which Megatron-Core's distributed optimizer splits its state."""
    return workload.layout.data_parallel * workload.layout.context_parallel


def _activations(workload: Workload, stage: int, implementation: Implementation) -> int:
    sizes = sizes_of(workload, workload.shape)
    cached = workload.layout.virtual_pipeline * frequencies_bytes(workload)
    if workload.optimizer is None:
        return cached + _forward(workload, sizes, implementation)
    saved = peak_bytes(workload, stage, implementation)
    return saved + cached + _backward(workload, sizes, implementation)


def _forward(workload: Workload, sizes: Sizes, implementation: Implementation) -> int:
    """At most what one layer would save if it were trained."""
    fp8 = workload.precision.fp8 is not None
    return layer_bytes(workload, sizes, NO_RECOMPUTE, implementation, fp8)


def _backward(workload: Workload, sizes: Sizes, implementation: Implementation) -> int:
    """One layer's recomputed activations, and what its largest part, the MLP, works with.

    That is the gradients of the MLP's inner tensors, of its input (and that input gathered from the
    sequence-parallel ranks), of the residual, and one weight gradient before it is added up.
    """
    fp8 = workload.precision.fp8 is not None
    recomputed = recomputed_bytes(workload, implementation, fp8)
    gathered = 2 if workload.layout.tensor_parallel > 1 else 1
    numbers = 3 * sizes.tokens * sizes.ffn
    numbers += sizes.hidden * (gathered * sizes.tokens + 2 * sizes.shared)
    return recomputed + (numbers + 2 * sizes.ffn * sizes.hidden) * sizes.width


def _logits(workload: Workload) -> int:
    """Saved logits, their gradient and the chunks in fp32 that the loss works on."""
    columns = workload.vocab_size // workload.layout.tensor_parallel
    tokens = workload.tokens // workload.layout.context_parallel
    chunk = min(tokens, max(1, LOSS_CHUNK_BYTES // (4 * columns))) * columns * 4
    chunks = LOSS_CHUNKS if workload.teacher is None else DIVERGENCE_CHUNKS
    if workload.optimizer is None:
        return logits_bytes(workload) + chunks * chunk
    return kept_logits_bytes(workload) + logits_bytes(workload) + chunks * chunk


def _read_only(workload: Workload, stage: int, implementation: Implementation) -> int:
    total = weight_bytes(workload, stage) + fp8_copy_bytes(workload, stage)
    total += _activations(workload, stage, implementation)
    return total + (logits_bytes(workload) if is_last(workload.layout, stage) else 0)


def _saving(workload: Workload, stage: int, parameters: int) -> int:
    """One bucket of fp32 state gathered from all who share it, and this rank's part of it.

    Megatron-Core 0.16.1 (get_parameter_state_dp_zero). Only what is reduced beside the backward
    pass, on the first pipeline stage, lies in buckets; a bucket is full with the parameter that
    reaches its size, at most the embedding. Virtual chunks have buffers of their own, of which this
    is the sum: too large.
    """
    sharing, numbers = _sharing(workload), parameters
    layout = workload.layout
    if workload.overlap.grad_reduce and stage == 0 and layout.virtual_pipeline == 1:
        embedding = workload.vocab_size // layout.tensor_parallel * workload.shape.hidden
        bucket = max(BUCKET_NUMBERS, BUCKET_NUMBERS_PER_REPLICA * sharing)
        numbers = min(parameters, bucket + embedding)
    return 4 * (numbers + math.ceil(numbers / sharing))


def cache_bytes(workload: Workload, rows: int, length: int) -> int:
    """Keys and values of generated texts on a rank of the stage that has most layers."""
    layout, sizes = workload.layout, sizes_of(workload, workload.shape)
    layers = max(
        sum(layers_of(layout, workload.shape.layers, stage))
        for stage in range(layout.pipeline_parallel)
    )
    return 2 * layers * rows * length * sizes.kv * sizes.width


def checkpoint_bytes(workload: Workload) -> int:
    """Tensors of a whole checkpoint, all ranks together, vocabulary padding included.

    Every weight once in the model's arithmetic; of a model that is trained also the main weight and
    both moments, which are written in fp32 whatever the optimizer keeps.
    """
    whole = replace(workload.shape, vocab_size=workload.vocab_size)
    state = 0 if workload.optimizer is None else 3 * WIDTHS["fp32"]
    return whole.parameters * (WIDTHS[workload.precision.dtype] + state)


def capture_store_bytes(stage: CaptureStage, samples: int) -> int:
    """Shards of a teacher store of so many samples: ids, log-probabilities and the rest's mass."""
    position = stage.store.entries * (4 + WIDTHS[stage.store.dtype]) + WIDTHS["fp32"]
    return samples * stage.sequence_length * position
