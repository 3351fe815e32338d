"""A decoder as plain functions of its HF tensors, a layer at a time, in fp32.

fp32 whatever the weights are stored in, so that a comparison shows what FP8 does and not how a
kernel rounds. Texts are run one by one: nothing is padded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from megatron_soaes.export.fp8.scales import CACHE, GROUPS, LayerScales, rounded
from megatron_soaes.export.source import Source, stored_dtype
from megatron_soaes.export.trtllm.layout import EMBEDDING, FINAL_NORM, HF_LAYER, OUTPUT
from megatron_soaes.models.rope import rope_inverse_frequencies

Texts = Sequence[Tensor]
"""Token ids of each text, int64 [tokens]."""


class Arithmetic(Protocol):
    """What becomes of the numbers that an engine holds in FP8."""

    def multiplied(self, group: str, x: Tensor) -> Tensor:
        """`x`, the input of the matrices of a group."""
        ...

    def cached(self, x: Tensor) -> Tensor:
        """`x`, keys (rotated) or values."""
        ...


class Exact:
    """They stay as they are."""

    def multiplied(self, group: str, x: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return x

    def cached(self, x: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return x


class Observed(Exact):
    """They stay as they are, and their absolute maxima are kept."""

    def __init__(self) -> None:
        self.largest: dict[str, Tensor] = {}
        """By group, and of keys and values under `CACHE`; fp32 []."""

    def multiplied(self, group: str, x: Tensor) -> Tensor:
        """See `Arithmetic`."""
        here = x.abs().max()
        self.largest[group] = torch.maximum(self.largest.get(group, here), here)
        return x

    def cached(self, x: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return self.multiplied(CACHE, x)


class Rounded:
    """They go through FP8, as far as there are scales for them."""

    def __init__(self, scales: LayerScales) -> None:
        self._scales = scales

    def multiplied(self, group: str, x: Tensor) -> Tensor:
        """See `Arithmetic`."""
        scale = self._scales.inputs.get(group)
        return x if scale is None else rounded(x, scale)

    def cached(self, x: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return x if self._scales.cache is None else rounded(x, self._scales.cache)


class Decoder:
    """A source's tensors on a device, and what is computed with them."""

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        """`dtype` is that of the export: tensors are rounded to it before they become fp32."""
        self.shape = source.shape
        self._source, self._dtype, self._device = source, dtype, device
        self._frequencies = rope_inverse_frequencies(self.shape)

    def embed(self, texts: Texts) -> list[Tensor]:
        """Hidden states [tokens, hidden] of each text before the first layer."""
        ids = torch.cat(list(texts))
        states = torch.empty(len(ids), self.shape.hidden)
        for first, block in self._source.blocks(EMBEDDING):
            inside = (ids >= first) & (ids < first + len(block))
            states[inside] = stored_dtype(
                block[ids[inside] - first], self._dtype, EMBEDDING
            ).float()
        return list(torch.split(states.to(self._device), [len(text) for text in texts]))

    def layer(self, index: int) -> dict[str, Tensor]:
        """The tensors of a layer in fp32, by HF name without the layer's prefix."""
        prefix = HF_LAYER.format(index)
        return {
            name.removeprefix(prefix): self._placed(tensor, name)
            for name, tensor in self._source.layer(index).items()
        }

    def run(self, x: Tensor, layer: Mapping[str, Tensor], arithmetic: Arithmetic) -> Tensor:
        """Hidden states [tokens, hidden] of one text after a layer."""
        norm = layer["input_layernorm.weight"]
        x = x + self._attention(self._norm(x, norm), layer, arithmetic)
        y = self._norm(x, layer["post_attention_layernorm.weight"])
        y = arithmetic.multiplied("gate_up", y)
        y = F.silu(F.linear(y, layer["mlp.gate_proj.weight"])) * F.linear(
            y, layer["mlp.up_proj.weight"]
        )
        return x + F.linear(arithmetic.multiplied("down_proj", y), layer["mlp.down_proj.weight"])

    def final(self, x: Tensor) -> Tensor:
        """What the output layer takes, of hidden states after the last layer."""
        ((_, norm),) = self._source.blocks(FINAL_NORM)
        return self._norm(x, self._placed(norm, FINAL_NORM))

    def output(self) -> Tensor:
        """The matrix of the output layer, fp32 [vocabulary, hidden]."""
        name = EMBEDDING if self.shape.tied_embeddings else OUTPUT
        return torch.cat([self._placed(block, name) for _, block in self._source.blocks(name)])

    def exact_states(self, texts: Texts) -> list[Tensor]:
        """What the output layer takes of each text, [tokens, hidden]."""
        states = self.embed(texts)
        for index in range(self.shape.layers):
            layer = self.layer(index)
            states = [self.run(x, layer, Exact()) for x in states]
        return [self.final(x) for x in states]

    def _placed(self, tensor: Tensor, name: str) -> Tensor:
        return stored_dtype(tensor, self._dtype, name).to(self._device).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.shape.norm_eps)

    def _attention(self, x: Tensor, layer: Mapping[str, Tensor], arithmetic: Arithmetic) -> Tensor:
        x = arithmetic.multiplied("qkv", x)
        q, k, v = (
            F.linear(x, layer[f"{name}.weight"], layer.get(f"{name}.bias"))
            .view(len(x), -1, self.shape.head_dim)
            .transpose(0, 1)
            for name in GROUPS["qkv"]
        )
        if self.shape.qk_norm:
            q = self._norm(q, layer["self_attn.q_norm.weight"])
            k = self._norm(k, layer["self_attn.k_norm.weight"])
        rotation = _rotation(self._frequencies, x)
        q, k = _rotate(q, rotation), arithmetic.cached(_rotate(k, rotation))
        mixed = F.scaled_dot_product_attention(
            q.unsqueeze(0), k.unsqueeze(0), arithmetic.cached(v).unsqueeze(0),
            is_causal=True, enable_gqa=True,
        )  # fmt: skip
        joined = arithmetic.multiplied("o_proj", mixed[0].transpose(0, 1).flatten(1))
        return F.linear(joined, layer["self_attn.o_proj.weight"])


def _rotation(frequencies: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [tokens, head_dim] of the positions 0, 1, ..."""
    angles = torch.outer(torch.arange(len(x), dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1).to(x.device)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding (Su et al. 2104.09864) of the halves of each head, x [..., tokens, dim]."""
    cosines, sines = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-second, first), dim=-1) * sines
