"""How the tensors of an HF model and of a Megatron-Core checkpoint correspond.

A family declares a table of `Weight`s once; import and export both read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_soaes.recipe.shapes import ModelShape

STACKED = "decoder.layers."
"""Checkpoint keys that begin so hold all layers in one tensor [layers, ...]."""
EMBEDDING = "embedding.word_embeddings.weight"
"""Checkpoint key of the embedding, which every model has; its dtype stands for the model's."""
OUTPUT = "output_layer.weight"
"""Checkpoint key of the output layer, which a tied model has not."""


@dataclass(frozen=True)
class Transform:
    """Two inverse functions between HF tensors and the one Megatron-Core tensor they make."""

    join: Callable[[ModelShape, Sequence[Tensor]], Tensor]
    split: Callable[[ModelShape, Tensor], list[Tensor]]


@dataclass(frozen=True)
class Weight:
    """One tensor of a Megatron-Core distributed checkpoint and the HF tensors it is made of."""

    key: str
    """Name in the distributed checkpoint (Transformer Engine's names, whatever spec is built)."""
    parts: Mapping[str, tuple[str, ...]]
    """HF names, in the order of `transform`, to their dimensions: names of `ModelShape` attributes.

    The names of stacked weights contain `{layer}`.
    """
    transform: Transform

    @property
    def stacked(self) -> bool:
        """Whether the checkpoint holds all layers of it in one tensor."""
        return self.key.startswith(STACKED)

    def hf_shapes(self, shape: ModelShape, layer: int | None = None) -> dict[str, tuple[int, ...]]:
        """HF tensor names to tensor shapes; of one layer when the weight is stacked."""
        return {
            name.format(layer=layer): tuple(int(getattr(shape, d)) for d in dimensions)
            for name, dimensions in self.parts.items()
        }

    def slice_shape(self, shape: ModelShape) -> tuple[int, ...]:
        """Shape of the Megatron-Core tensor of one layer, or of the whole when not stacked."""
        parts = list(self.hf_shapes(shape, 0).values())
        return sum(part[0] for part in parts), *parts[0][1:]

    def global_shape(self, shape: ModelShape) -> tuple[int, ...]:
        """Shape of the tensor in the distributed checkpoint, without vocabulary padding."""
        return (*((shape.layers,) if self.stacked else ()), *self.slice_shape(shape))


def slices(table: Sequence[Weight], layers: Sequence[int]) -> Iterator[tuple[Weight, int | None]]:
    """Everything a model holds, in forward order: what precedes the layers, each layer, the rest.

    Layer by layer rather than key by key, because HF files keep the tensors of a layer together.
    """
    stacked = [weight for weight in table if weight.stacked]
    for weight in table:
        if not weight.stacked:
            yield weight, None
        elif weight is stacked[0]:
            for layer in layers:
                for member in stacked:
                    yield member, layer


def extra_state_keys(shape: ModelShape) -> Iterator[str]:
    """Keys of the objects that Transformer Engine's modules ask for beside their weights.

    Such a module keeps FP8 scaling factors in its extra state, and None where it has none.
    Megatron-Core refuses a checkpoint that lacks one of a model it builds, and takes one too many.
    """
    norms = ("self_attention.q_layernorm", "self_attention.k_layernorm") if shape.qk_norm else ()
    for module in (*_STATEFUL_MODULES, *norms):
        for layer in range(shape.layers):
            yield f"{STACKED}{module}._extra_state/shard_{layer}_{shape.layers}"
    yield "decoder.final_layernorm._extra_state/shard_0_1"


_STATEFUL_MODULES = (
    "self_attention.core_attention",
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


def checkpoint_key(parameter: str) -> tuple[str, int | None]:
    """The checkpoint key and layer of a parameter of an unsharded `GPTModel`.

    The local layer spec names two norms otherwise than its own checkpoints do.
    """
    if not parameter.startswith(STACKED):
        return parameter, None
    layer, _, name = parameter.removeprefix(STACKED).partition(".")
    return STACKED + _LOCAL_SPEC_NAMES.get(name, name), int(layer)


_LOCAL_SPEC_NAMES = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


def _only(shape: ModelShape, tensors: Sequence[Tensor]) -> Tensor:
    (tensor,) = tensors
    return tensor


def _join_gated(shape: ModelShape, tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors))


def _split_gated(shape: ModelShape, tensor: Tensor) -> list[Tensor]:
    return [tensor[: shape.ffn], tensor[shape.ffn :]]


def _join_qkv(shape: ModelShape, tensors: Sequence[Tensor]) -> Tensor:
    groups = [tensor.reshape(shape.kv_heads, -1, *tensor.shape[1:]) for tensor in tensors]
    return torch.cat(groups, dim=1).flatten(0, 1)


def _split_qkv(shape: ModelShape, tensor: Tensor) -> list[Tensor]:
    key = shape.query_width // shape.kv_heads
    value = key + shape.head_dim
    groups = tensor.reshape(shape.kv_heads, -1, *tensor.shape[1:])
    parts = groups[:, :key], groups[:, key:value], groups[:, value:]
    return [part.flatten(0, 1) for part in parts]


DIRECT = Transform(_only, lambda shape, tensor: [tensor])
"""The same tensor under another name."""

VOCABULARY = Transform(_only, lambda shape, tensor: [tensor[: shape.vocab_size]])
"""One row a token. Checkpoints of a training run hold padding rows after them; HF models none."""

GATED = Transform(_join_gated, _split_gated)
"""Gate rows, then up rows."""

QKV = Transform(_join_qkv, _split_qkv)
"""For each group of queries that share a key: its query heads, its key head, its value head."""
