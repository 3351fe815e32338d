"""What a rank keeps of each micro-batch between its forward and its backward pass, in bytes.

The way of counting is that of Korthikanti et al. (arXiv 2205.05198). Two implementations of the
same layers are counted. "local" is Megatron-Core's local layers with our norm and SDPA on a CPU,
exact to the byte: the tests compare it with autograd's saved tensors. "transformer_engine" is a
model of Transformer Engine's layers in bf16 or FP8 that was not measured: what each of them saves
is read in its source (transformer_engine/pytorch: module/layernorm_linear.py, module/linear.py,
FusedAttnFunc in attention/dot_product_attention/backends.py). Its attention keeps no second copy of
the output and its norms no normalized input, both of which PyTorch's kernels on a CPU do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megatron_soaes.planner.parameters import is_last, layers_of
from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout, Recompute

Implementation = Literal["local", "transformer_engine"]
NO_RECOMPUTE = Recompute()
WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
"""Bytes of a number."""
LOSS_WIDTH = 18
"""Bytes a position that the loss keeps beside the logits: its label (8), whether that is here (1),
the rank's share of the probability (4), the loss weight (4) and whether that is above 0 (1)."""


@dataclass(frozen=True)
class Sizes:
    """Sides of one rank's matrices."""

    tokens: int
    """Of a micro-batch on this context-parallel rank."""
    shared: int
    """Those of them whose hidden states this tensor-parallel rank holds."""
    all_tokens: int
    """Of a micro-batch on all context-parallel ranks."""
    sequence: int
    """Of a sample on all of them."""
    hidden: int
    query: int
    kv: int
    heads: int
    kv_heads: int
    qkv: int
    """Columns of the tensor that queries, keys and values are views of."""
    head_dim: int
    ffn: int
    qk_norm: bool
    width: int
    """Bytes of a weight or an activation."""


def sizes_of(workload: Workload, shape: ModelShape) -> Sizes:
    """Those of a model of this shape in the workload's layout."""
    layout = workload.layout
    tensor = layout.tensor_parallel
    tokens = workload.tokens // layout.context_parallel
    # With fewer KV heads than ranks every rank gathers all of QKV and keeps views of it.
    gathered = shape.kv_heads < tensor
    kv_heads = 1 if gathered else shape.kv_heads // tensor
    qkv = shape.query_width + 2 * shape.kv_width
    return Sizes(
        tokens=tokens,
        shared=tokens // tensor if layout.sequence_parallel else tokens,
        all_tokens=workload.tokens,
        sequence=workload.sequence_length,
        hidden=shape.hidden,
        query=shape.query_width // tensor,
        kv=kv_heads * shape.head_dim,
        heads=shape.heads // tensor,
        kv_heads=kv_heads,
        qkv=qkv if gathered else qkv // tensor,
        head_dim=shape.head_dim,
        ffn=shape.ffn // tensor,
        qk_norm=shape.qk_norm,
        width=WIDTHS[workload.precision.dtype],
    )


def layer_bytes(
    workload: Workload,
    sizes: Sizes,
    recompute: Recompute,
    implementation: Implementation,
    fp8: bool,
) -> int:
    """What one layer saves of one micro-batch; `fp8`: its products are in FP8."""
    if recompute.granularity == "full":
        return sizes.shared * sizes.hidden * sizes.width
    modules = set[str](recompute.modules if recompute.granularity == "selective" else ())
    if implementation == "local":
        return _local_layer(workload, sizes, modules)
    return _engine_layer(workload, sizes, modules, fp8)


def recomputed_bytes(workload: Workload, implementation: Implementation, fp8: bool) -> int:
    """At most what the backward pass of one layer saves anew, having computed it again."""
    sizes = sizes_of(workload, workload.shape)
    whole = layer_bytes(workload, sizes, NO_RECOMPUTE, implementation, fp8)
    if workload.recompute.granularity == "full":
        return whole + _local_tables(sizes, workload.layout, NO_RECOMPUTE)
    return max(0, whole - layer_bytes(workload, sizes, workload.recompute, implementation, fp8))


def _local_layer(workload: Workload, sizes: Sizes, modules: set[str]) -> int:
    states = sizes.shared * sizes.hidden * sizes.width
    norm = states if "layernorm" in modules else _local_norm(sizes) + states
    inner = sizes.tokens * sizes.ffn * sizes.width
    mlp = 0 if "mlp" in modules else (_swiglu_numbers(workload) + 1) * inner
    attention = _local_attention(sizes, workload.layout, "core_attn" in modules)
    return 2 * norm + attention + mlp


def _swiglu_numbers(workload: Workload) -> int:
    """What SwiGLU keeps for each number that it returns.

    Both halves of what it reads; and unless it is one kernel, the activated half, and the other one
    again, to which Megatron-Core adds an offset (of 0).
    """
    return 2 if workload.kernels.swiglu else 4


def _local_norm(sizes: Sizes) -> int:
    """PyTorch's RMSNorm on a CPU: its input, the root and the normalized input, all in fp32."""
    return 4 * (2 * sizes.shared * sizes.hidden + sizes.shared)


def _local_attention(sizes: Sizes, layout: Layout, recomputed: bool) -> int:
    output = sizes.tokens * sizes.query * sizes.width
    kept = 2 * output  # the rotated queries, and what the projection reads
    if sizes.qk_norm:
        kept += _local_head_norms(sizes)
    in_qkv = sizes.tokens * sizes.qkv * sizes.width
    if recomputed:
        # v is a view of QKV. The kind of mask is an int32.
        return kept + sizes.tokens * sizes.kv * sizes.width + in_qkv + 4
    kept += output + 4 * sizes.tokens * sizes.heads
    if layout.context_parallel == 1:
        return kept + sizes.tokens * sizes.kv * sizes.width + in_qkv
    # Keys and values are those of all ranks; an fp32 norm of k keeps its view of QKV.
    kept += 2 * sizes.all_tokens * sizes.kv * sizes.width + _mask_bytes(sizes, layout)
    return kept + (in_qkv if sizes.qk_norm and sizes.width == 4 else 0)


def _mask_bytes(sizes: Sizes, layout: Layout) -> int:
    """Which keys two chunks of queries see; the most, where each sample is one document.

    A sample has 2 * context_parallel chunks; those of a rank see as many chunks of keys and one
    more together (the first rank one fewer: the kernel's own mask does for its first chunk).
    """
    chunks = 2 * layout.context_parallel
    samples = sizes.all_tokens // sizes.sequence
    return samples * (sizes.sequence // chunks) ** 2 * (chunks + 1) * sizes.width


def _local_head_norms(sizes: Sizes) -> int:
    """As `_local_norm`; an fp32 input that is a view of QKV is counted there."""
    roots = sizes.heads + sizes.kv_heads
    normalized = sizes.query + sizes.kv
    copied = normalized
    if sizes.width == 4:
        copied = sizes.query if sizes.kv_heads > 1 else 0
    return 4 * sizes.tokens * (roots + normalized + copied)


def _engine_layer(workload: Workload, sizes: Sizes, modules: set[str], fp8: bool) -> int:
    """Norms are part of the linear layers behind them, so "layernorm" recomputes nothing here."""
    setting = workload.precision.fp8 if fp8 else None
    product_width = sizes.width
    scales = 1.0
    if setting is not None:
        product_width = 1
        # A scale of one byte for 32 numbers, or of four for 128.
        scales = 33 / 32 if setting.recipe in ("mxfp8", "blockwise") else 1.0

    def product(numbers: int) -> int:
        return int(numbers * product_width * scales)

    states = sizes.shared * sizes.hidden
    norm = states * sizes.width + 4 * sizes.shared + product(states)
    attention = _engine_attention(sizes, "core_attn" in modules)
    if setting is not None and setting.recipe == "delayed":
        attention += product(sizes.tokens * sizes.query)
    if "mlp" in modules:
        return norm + attention + states * sizes.width
    inner = sizes.tokens * sizes.ffn
    swiglu = _swiglu_numbers(workload) * inner * sizes.width
    return norm + attention + norm + swiglu + product(inner)


def _engine_attention(sizes: Sizes, recomputed: bool) -> int:
    """Rotated q and k, QKV (v is a view of it), the output; cosines and sines for q and for k."""
    tokens, width = sizes.tokens, sizes.width
    kept = tokens * (2 * sizes.query + sizes.kv + sizes.qkv + 4 * sizes.head_dim) * width
    if sizes.qk_norm:
        kept += tokens * (sizes.query + sizes.kv) * width
        kept += 4 * tokens * (sizes.heads + sizes.kv_heads)
    return kept if recomputed else kept + 4 * tokens * sizes.heads


def chunk_bytes(workload: Workload, stage: int, chunk: int, implementation: Implementation) -> int:
    """What one model chunk of a pipeline stage keeps of one micro-batch, without the logits.

    With several pipeline stages that includes the hidden states that came in, and those that went
    out where the schedule does not let go of them.
    """
    sizes = sizes_of(workload, workload.shape)
    recompute, layout = workload.recompute, workload.layout
    total = sum(
        layer_bytes(workload, sizes, recompute, implementation, fp8)
        for fp8 in fp8_layers(workload, stage, chunk)
    )
    if implementation == "local":
        total += _local_tables(sizes, layout, recompute)
    first = stage == 0 and chunk == 0
    if first:
        total += sizes.tokens * (8 if layout.tensor_parallel == 1 else 9)  # ids, and which are here
    states = sizes.shared * sizes.hidden * sizes.width
    if not first and implementation == "local" and _copies_input(sizes, recompute):
        total += states
    if _ends_model(layout, stage, chunk):
        norm = _local_norm(sizes) if implementation == "local" else states + 4 * sizes.shared
        return total + norm + states
    return total + (0 if _lets_go(layout, implementation) else states)


def _lets_go(layout: Layout, implementation: Implementation) -> bool:
    """Whether a pass's output goes once it is sent: not while gloo may still be reading it."""
    return implementation == "transformer_engine" or layout.virtual_pipeline == 1


def _local_tables(sizes: Sizes, layout: Layout, recompute: Recompute) -> int:
    """What all layers share: cosines and sines, and under context parallelism the keys' order."""
    if recompute.granularity == "full":
        return 0
    rotary = sizes.tokens * sizes.head_dim * sizes.width
    recomputed = recompute.granularity == "selective" and "core_attn" in recompute.modules
    ordered = layout.context_parallel > 1 and not recomputed
    return rotary + (8 * sizes.all_tokens if ordered else 0)


def _copies_input(sizes: Sizes, recompute: Recompute) -> bool:
    """Whether the first norm saves an fp32 copy and not the hidden states that came in."""
    selective = recompute.granularity == "selective" and "layernorm" in recompute.modules
    return sizes.width < 4 and not selective and recompute.granularity != "full"


def _ends_model(layout: Layout, stage: int, chunk: int) -> bool:
    return is_last(layout, stage) and chunk == layout.virtual_pipeline - 1


def fp8_layers(workload: Workload, stage: int, chunk: int) -> list[bool]:
    """For each layer of a chunk whether its products are in FP8."""
    setting, layout = workload.precision.fp8, workload.layout
    layers = [setting is not None] * layers_of(layout, workload.shape.layers, stage)[chunk]
    if setting is not None and setting.first_last_layers_bf16:
        if stage == 0 and chunk == 0:
            layers[0] = False
        if _ends_model(layout, stage, chunk):
            layers[-1] = False
    return layers


def kept_logits_bytes(workload: Workload) -> int:
    """The logits of one micro-batch and what the loss keeps beside them, on the last stage."""
    sizes = sizes_of(workload, workload.shape)
    return logits_bytes(workload) + LOSS_WIDTH * sizes.tokens


def logits_bytes(workload: Workload) -> int:
    """The logits of one micro-batch on one rank, in the model's arithmetic."""
    layout = workload.layout
    columns = workload.vocab_size // layout.tensor_parallel
    width = WIDTHS[workload.precision.dtype]
    return workload.tokens // layout.context_parallel * columns * width


def frequencies_bytes(workload: Workload) -> int:
    """Rotary frequencies that each model chunk caches, for documents as long as a sample (fp32)."""
    return 4 * workload.sequence_length * workload.shape.head_dim


def peak_bytes(workload: Workload, stage: int, implementation: Implementation) -> int:
    """The most that a stage keeps at once of all micro-batches in flight, without logits."""
    layout = workload.layout
    chunks = range(layout.virtual_pipeline)
    each = [chunk_bytes(workload, stage, chunk, implementation) for chunk in chunks]
    sizes = sizes_of(workload, workload.shape)
    states = sizes.shared * sizes.hidden * sizes.width
    now = most = backwards = 0
    for forward, chunk in passes(layout, stage, workload.micro_batches):
        now += each[chunk] if forward else -each[chunk]
        backwards += not forward
        if forward:
            not_sent = _lets_go(layout, implementation) and not _ends_model(layout, stage, chunk)
            # Variables of the schedule without virtual chunks still name a pass that has ended,
            # with what came into it.
            late = backwards > 0 and stage > 0 and layout.virtual_pipeline == 1
            most = max(most, now + (not_sent + late) * states)
    return most


def passes(layout: Layout, stage: int, micro_batches: int) -> Iterator[tuple[bool, int]]:
    """A stage's passes in the order of the schedule: whether forward, and of which chunk.

    Megatron-Core 0.16.1 (schedules.get_pp_rank_microbatches): some forward passes, then forward and
    backward in turn, then the remaining backward passes (Narayanan et al., arXiv 2104.04473). With
    chunks, as many micro-batches as there are stages go through one chunk before the next has its
    turn; backward passes take the chunks from the last.
    """
    stages, chunks = layout.pipeline_parallel, layout.virtual_pipeline
    total = micro_batches * chunks
    warmup = stages - stage - 1
    if chunks > 1:
        warmup = 2 * warmup + (chunks - 1) * stages
    warmup = min(warmup, total)

    def chunk(number: int) -> int:
        return number // stages % chunks

    for number in range(warmup):
        yield True, chunk(number)
    for number in range(total):
        if number + warmup < total:
            yield True, chunk(number + warmup)
        yield False, chunks - 1 - chunk(number)
