"""The layers of a decoder as a dozen operators each, over whole weights or a rank's shards.

Modules, their hooks and autograd functions cost more than the arithmetic when one token at a time
goes through a small model; here nothing but the arithmetic is left. The weights are named and laid
out as in a Megatron-Core checkpoint, whether they come from one, from a live model or from an HF
directory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from megatron_soaes.decoding.cache import Window
from megatron_soaes.models.llama import ATTENTION, MLP
from megatron_soaes.recipe.shapes import ModelShape

EMBEDDING = ("embedding.word_embeddings.weight", None)
FINAL_NORM = ("decoder.final_layernorm.weight", None)
OUTPUT = ("output_layer.weight", None)

Weights = Mapping[tuple[str, int | None], Tensor]
"""Tensors by checkpoint key and layer, None for what is not stacked."""


class Whole:
    """One process holds every head and every column."""

    def __init__(self, shape: ModelShape) -> None:
        self.kv_heads = shape.kv_heads
        """Key heads of this process."""
        self.group = shape.heads // shape.kv_heads
        """Its query heads for each of them."""
        self._head_dim = shape.head_dim

    def heads(self, qkv: Tensor) -> Tensor:
        """[rows, m, columns of the joined product] -> [rows, m, KV heads, group + 2, head_dim].

        In each group: its query heads, its key head, its value head.
        """
        return qkv.view(*qkv.shape[:-1], self.kv_heads, self.group + 2, self._head_dim)

    def sum(self, partial: Tensor) -> Tensor:
        """The sum over the processes that share a product, of which this is the only one."""
        return partial


@dataclass(frozen=True)
class Layer:
    """The weights of one layer (or one rank's shard), what is multiplied together in one tensor."""

    input_norm: Tensor
    qkv: Tensor
    """Rows as `Whole.heads` takes them."""
    qkv_bias: Tensor | None
    head_norm: Tensor | None
    """[group + 1, head_dim]: Qwen3's norm of the query heads and the key head of a group."""
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


def layers_of(weights: Weights, count: int, shape: ModelShape, part: Whole) -> list[Layer]:
    """Layers 0 to `count` - 1 of the weights."""
    return [_layer(weights, index, shape, part) for index in range(count)]


def _layer(weights: Weights, index: int, shape: ModelShape, part: Whole) -> Layer:
    head_norm = None
    if shape.qk_norm:
        query = weights[ATTENTION + "q_layernorm.weight", index].expand(part.group, -1)
        key = weights[ATTENTION + "k_layernorm.weight", index].unsqueeze(0)
        head_norm = torch.cat((query, key))
    return Layer(
        input_norm=weights[ATTENTION + "linear_qkv.layer_norm_weight", index],
        qkv=weights[ATTENTION + "linear_qkv.weight", index],
        qkv_bias=weights.get((ATTENTION + "linear_qkv.bias", index)),
        head_norm=head_norm,
        out=weights[ATTENTION + "linear_proj.weight", index],
        mlp_norm=weights[MLP + "linear_fc1.layer_norm_weight", index],
        gate_up=weights[MLP + "linear_fc1.weight", index],
        down=weights[MLP + "linear_fc2.weight", index],
    )


def run_layers(
    x: Tensor, layers: Sequence[Layer], window: Window, shape: ModelShape, part: Whole
) -> Tensor:
    """Hidden states of the window's tokens, [rows, m, hidden], through layers."""
    width, eps = (shape.hidden,), shape.norm_eps
    for index, layer in enumerate(layers):
        normed = F.rms_norm(x, width, layer.input_norm, eps)
        heads = part.heads(F.linear(normed, layer.qkv, layer.qkv_bias))
        attended = _attend(heads, index, layer, window, shape)
        x = x + part.sum(F.linear(attended, layer.out))
        normed = F.rms_norm(x, width, layer.mlp_norm, eps)
        gate, up = F.linear(normed, layer.gate_up).chunk(2, dim=-1)
        x = x + part.sum(F.linear(F.silu(gate) * up, layer.down))
    return x


def _attend(heads: Tensor, index: int, layer: Layer, window: Window, shape: ModelShape) -> Tensor:
    qk, value = heads[..., :-1, :], heads[..., -1, :]
    if layer.head_norm is not None:
        qk = F.rms_norm(qk, (shape.head_dim,), eps=shape.norm_eps) * layer.head_norm
    qk = window.rotate(qk)
    return window.attend(index, qk[..., :-1, :], qk[..., -1, :], value)


def final_norm(x: Tensor, weights: Weights, shape: ModelShape) -> Tensor:
    """What the output layer takes."""
    return F.rms_norm(x, (shape.hidden,), weights[FINAL_NORM], shape.norm_eps)
