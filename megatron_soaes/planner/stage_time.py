"""Seconds that one micro-batch takes on one pipeline stage: products, attention, memory, exchanges.

The model, term by term, is in docs/planner.md. What it does not know: kernels too small to keep a
GPU busy, the host, other jobs on the network, and documents shorter than a sample, whose attention
costs less than what is counted here.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_soaes.planner.activations import WIDTHS, Sizes, fp8_layers, sizes_of
from megatron_soaes.planner.hardware import Rates
from megatron_soaes.planner.lasting import gradient_width
from megatron_soaes.planner.parameters import is_last, rank_parameters
from megatron_soaes.planner.workload import Workload

PRODUCT_REACHED = {"fp32": 0.8, "bf16": 0.64, "fp8": 0.52}
"""Share of the datasheet's rate that a large product reaches in a training step: bf16 and FP8 are
the two constants fitted to published runs (`published`); fp32, outside tensor cores, is assumed."""
HALF_SIDE = 128
"""Assumed, the side of a kernel's tile: a product with a side this long reaches half of what a
large one does."""
ATTENTION_REACHED = {"forward": 0.60, "backward": 0.50}
"""Assumed: share of the bf16 rate in a causal flash kernel. FlashAttention-3 (arXiv 2407.08608) has
at most 0.75 forward on an H100."""
ATTENTION_BACKWARD = 2.5
"""Products of a flash kernel's backward pass over those of its forward pass: it computes the scores
again, five products for two (Dao et al., arXiv 2205.14135)."""
CAST_BYTES = {"delayed": 4, "tensorwise": 6, "blockwise": 4, "mxfp8": 4}
"""Memory traffic of casting one bf16 number to FP8: read it (2), write it and its transpose (1
each); a scale of the whole tensor that is found now takes another reading (2)."""
LOSS_BYTES = 24
"""Assumed: memory traffic of the loss for each logit and pass: fp32 copies, maximum, sum, ratio."""
HIDDEN_EXCHANGES = 0.8
"""Assumed: share of the tensor-parallel exchanges that Transformer Engine's user buffers hide."""
NVLINK_LATENCY = 15e-6
NETWORK_LATENCY = 30e-6
"""Assumed: seconds that an exchange takes beside the time of its bytes."""


@dataclass(frozen=True)
class Pass:
    """Seconds of one micro-batch in one direction on a rank of a stage; exchanges as they show."""

    compute: float
    tensor_parallel: float
    context_parallel: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.tensor_parallel + self.context_parallel

    def __add__(self, other: Pass) -> Pass:
        return Pass(
            self.compute + other.compute,
            self.tensor_parallel + other.tensor_parallel,
            self.context_parallel + other.context_parallel,
        )


NOTHING = Pass(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class StagePass:
    """One micro-batch on one stage, forward and backward."""

    forward: Pass
    backward: Pass
    """With what is recomputed; NOTHING where nothing is trained."""

    @property
    def total(self) -> Pass:
        """Both directions."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Link:
    """Between the ranks of one group."""

    bytes_per_second: float
    latency: float

    def seconds(self, number_of_bytes: float) -> float:
        """To send so many bytes at once."""
        return self.latency + number_of_bytes / self.bytes_per_second


def link_of(ranks: int, stride: int, gpus_per_node: int, rates: Rates) -> Link:
    """Between `ranks` ranks that lie `stride` apart; ranks fill one node after the other.

    A group that spans nodes uses the adapters of all its members in a node.
    """
    if ranks * stride <= gpus_per_node:
        return Link(rates.nvlink, NVLINK_LATENCY)
    beside = max(1, gpus_per_node // stride)
    return Link(min(rates.nvlink, beside * rates.network), NETWORK_LATENCY)


def product_seconds(sides: tuple[float, float, float], arithmetic: str, rates: Rates) -> float:
    """A product of [m, k] and [k, n] matrices, sides m, n and k in any order.

    It reaches a share of the datasheet's rate that falls with each short side.
    """
    m, n, k = sides
    peak = {"fp32": rates.fp32, "bf16": rates.bf16, "fp8": rates.fp8}[arithmetic]
    assert peak is not None, "FP8 on such a GPU is refused before"
    reached = PRODUCT_REACHED[arithmetic]
    for side in sides:
        reached *= side / (side + HALF_SIDE)
    return 2 * m * n * k / (peak * reached)


@dataclass(frozen=True)
class _Layer:
    """Seconds of the parts of one layer's forward pass; backward passes follow from them."""

    attention_block: float
    """The QKV and the output product."""
    mlp: float
    """Both of its products."""
    attention: float
    attention_backward: float
    norms: float
    mlp_traffic: float
    other_traffic: float
    """Rotation and residual."""
    casts: float
    gradient_casts: float

    @property
    def forward(self) -> float:
        products = self.attention_block + self.mlp + self.attention
        return products + self.norms + self.mlp_traffic + self.other_traffic + self.casts

    @property
    def backward(self) -> float:
        """Twice the products and the memory traffic of the forward pass, without recomputation."""
        traffic = self.norms + self.mlp_traffic + self.other_traffic
        products = 2 * (self.attention_block + self.mlp) + self.attention_backward
        return products + 2 * traffic + self.gradient_casts


def _layer(workload: Workload, fp8: bool, rates: Rates) -> _Layer:
    sizes, dtype = sizes_of(workload, workload.shape), workload.precision.dtype
    arithmetic = "fp8" if fp8 else dtype
    tokens, hidden, query, ffn = sizes.tokens, sizes.hidden, sizes.query, sizes.ffn
    columns = query + 2 * workload.shape.kv_width // workload.layout.tensor_parallel

    def product(n: float, k: float) -> float:
        return product_seconds((tokens, n, k), arithmetic, rates)

    def traffic(numbers: float) -> float:
        return numbers * sizes.width / rates.memory

    setting = workload.precision.fp8 if fp8 else None
    cast = CAST_BYTES[setting.recipe] / rates.memory if setting else 0.0
    states = sizes.shared * hidden
    forward, backward = _attention(workload, sizes, rates)
    return _Layer(
        attention_block=product(columns, hidden) + product(hidden, query),
        mlp=product(2 * ffn, hidden) + product(hidden, ffn),
        attention=forward,
        attention_backward=backward,
        norms=traffic(2 * 2 * states),
        mlp_traffic=traffic((3 if workload.kernels.swiglu else 5) * tokens * ffn),
        other_traffic=traffic(2 * 3 * states + 2 * tokens * (query + sizes.kv)),
        casts=cast * (2 * states + tokens * (query + ffn)),
        gradient_casts=cast * (2 * states + tokens * (columns + 2 * ffn)),
    )


def _attention(workload: Workload, sizes: Sizes, rates: Rates) -> tuple[float, float]:
    """Forward and backward, as if each sample were one document: causal, so half of the scores."""
    flops = 4 * sizes.tokens * sizes.sequence * sizes.query / 2
    fp32 = workload.precision.dtype == "fp32"
    peak = rates.fp32 if fp32 else rates.bf16
    forward = flops / (peak * ATTENTION_REACHED["forward"])
    backward = ATTENTION_BACKWARD * flops / (peak * ATTENTION_REACHED["backward"])
    return forward, backward


def _recomputed(workload: Workload, layer: _Layer) -> float:
    """Seconds of the forward pass that the backward pass repeats."""
    recompute = workload.recompute
    if recompute.granularity == "none":
        return 0.0
    if recompute.granularity == "full":
        return layer.forward
    parts = {
        "core_attn": layer.attention,
        "mlp": layer.mlp + layer.mlp_traffic,
        "layernorm": layer.norms,
    }
    return sum(parts[module] for module in recompute.modules)


def _exchanges_again(workload: Workload) -> int:
    """Tensor-parallel exchanges of a layer that recomputation repeats."""
    recompute = workload.recompute
    if recompute.granularity == "full":
        return 4
    return 2 if recompute.granularity == "selective" and "mlp" in recompute.modules else 0


def stage_pass(workload: Workload, stage: int, gpus_per_node: int, rates: Rates) -> StagePass:
    """One micro-batch on a rank of a pipeline stage, with what only runs forward there."""
    chunks = range(workload.layout.virtual_pipeline)
    layers = [fp8 for chunk in chunks for fp8 in fp8_layers(workload, stage, chunk)]
    total = StagePass(NOTHING, NOTHING)
    # Layers of one arithmetic are alike.
    for fp8 in sorted(set(layers)):
        one = _layer_pass(workload, fp8, gpus_per_node, rates)
        total = _plus(total, one, layers.count(fp8))
    if is_last(workload.layout, stage):
        total = _plus(total, _head(workload, gpus_per_node, rates), 1)
    if workload.optimizer is None:
        return StagePass(total.forward, NOTHING)
    if not workload.kernels.gradient_accumulation:
        added = rank_parameters(workload, stage) * _accumulation_bytes(workload) / rates.memory
        total = StagePass(total.forward, total.backward + Pass(added, 0.0, 0.0))
    for beside in workload.read_only:
        total = _plus(total, stage_pass(beside, stage, gpus_per_node, rates), 1)
    return total


def _plus(total: StagePass, one: StagePass, times: int) -> StagePass:
    def multiple(part: Pass) -> Pass:
        return Pass(
            times * part.compute, times * part.tensor_parallel, times * part.context_parallel
        )

    forward, backward = multiple(one.forward), multiple(one.backward)
    return StagePass(total.forward + forward, total.backward + backward)


def _layer_pass(workload: Workload, fp8: bool, gpus_per_node: int, rates: Rates) -> StagePass:
    layer = _layer(workload, fp8, rates)
    exchange = _exchange(workload, gpus_per_node, rates)
    again = _exchanges_again(workload)
    gather = _qkv_gather(workload, gpus_per_node, rates)
    ring = _ring(workload, gpus_per_node, rates)
    repeated = _recomputed(workload, layer)
    recompute = workload.recompute
    attention_again = recompute.granularity == "full" or (
        recompute.granularity == "selective" and "core_attn" in recompute.modules
    )
    ring_forward = max(0.0, ring - layer.attention)
    # Keys and values go round once more, and their gradients with them.
    ring_backward = max(0.0, 2 * ring - layer.attention_backward)
    return StagePass(
        Pass(layer.forward, 4 * exchange + gather, ring_forward),
        Pass(
            layer.backward + repeated,
            (4 + again) * exchange + (2 if recompute.granularity == "full" else 1) * gather,
            ring_backward + (ring_forward if attention_again else 0.0),
        ),
    )


def _exchange(workload: Workload, gpus_per_node: int, rates: Rates) -> float:
    """One all-gather or reduce-scatter of hidden states, as far as it shows.

    A layer has four in each direction; without sequence parallelism an all-reduce is two of them.
    The inputs gathered again for weight gradients go beside the other gradient's product.
    """
    tensor = workload.layout.tensor_parallel
    if tensor == 1:
        return 0.0
    sizes = sizes_of(workload, workload.shape)
    states = sizes.tokens * sizes.hidden * sizes.width
    link = link_of(tensor, 1, gpus_per_node, rates)
    shown = 1 - HIDDEN_EXCHANGES if workload.overlap.tensor_parallel else 1.0
    return link.seconds(states * (tensor - 1) / tensor) * shown


def _qkv_gather(workload: Workload, gpus_per_node: int, rates: Rates) -> float:
    """Queries, keys and values of all ranks, where there are fewer KV heads than ranks."""
    tensor = workload.layout.tensor_parallel
    if workload.shape.kv_heads >= tensor:
        return 0.0
    sizes = sizes_of(workload, workload.shape)
    numbers = sizes.tokens * sizes.qkv * (tensor - 1) / tensor
    return link_of(tensor, 1, gpus_per_node, rates).seconds(numbers * sizes.width)


def _ring(workload: Workload, gpus_per_node: int, rates: Rates) -> float:
    """Keys and values of the other context-parallel ranks, passed round once."""
    context = workload.layout.context_parallel
    if context == 1:
        return 0.0
    sizes = sizes_of(workload, workload.shape)
    link = link_of(context, workload.layout.tensor_parallel, gpus_per_node, rates)
    return (context - 1) * link.seconds(2 * sizes.tokens * sizes.kv * sizes.width)


def _head(workload: Workload, gpus_per_node: int, rates: Rates) -> StagePass:
    """The output layer, never in FP8, and the loss."""
    sizes, layout = sizes_of(workload, workload.shape), workload.layout
    columns = workload.vocab_size // layout.tensor_parallel
    sides = (sizes.tokens, columns, sizes.hidden)
    product = product_seconds(sides, workload.precision.dtype, rates)
    loss = sizes.tokens * columns * LOSS_BYTES / rates.memory
    exchange = _exchange(workload, gpus_per_node, rates)
    return StagePass(Pass(product + loss, exchange, 0.0), Pass(2 * product + loss, exchange, 0.0))


def _accumulation_bytes(workload: Workload) -> int:
    """Memory traffic of adding one weight gradient to its buffer: read both, write one."""
    return WIDTHS[workload.precision.dtype] + 2 * gradient_width(workload)
