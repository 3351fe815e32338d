"""Keys and values of sequences in progress, and attention over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from megatron_soaes.models.rope import rope_inverse_frequencies
from megatron_soaes.recipe.shapes import ModelShape


class KVCache:
    """Rotated keys and values of several sequences, each of its own length, in fixed memory.

    A row holds one sequence. Position p of a sequence lies at place p; what lies at and after
    `lengths[row]` is never seen and is overwritten by the next pass. To take tokens back, lower the
    length.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        layers: int,
        kv_heads: int,
        rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`layers` and `kv_heads` are those that this process holds; `capacity` counts positions.

        Memory: 2 * layers * rows * kv_heads * capacity * head_dim elements.
        """
        size = (layers, rows, kv_heads, capacity, shape.head_dim)
        # Not uninitialised: a NaN would survive its attention weight of 0.
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)
        self.lengths = [0] * rows
        self.capacity = capacity
        angles = torch.outer(torch.arange(capacity).float(), rope_inverse_frequencies(shape))
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.cat((cos, cos), dim=-1).to(device, dtype)
        self._signed_sin = torch.cat((-sin, sin), dim=-1).to(device, dtype)

    def extend(self, first_row: int, tokens: Sequence[Sequence[int]]) -> None:
        """Count all tokens that a pass has stored for rows `first_row`, `first_row` + 1, ..."""
        for row, fed in enumerate(tokens, first_row):
            self.lengths[row] += len(fed)

    def move(self, source: int, target: int) -> None:
        """Copy the sequence of one row into another."""
        length = self.lengths[source]
        for buffer in (self.keys, self.values):
            buffer[:, target, :, :length] = buffer[:, source, :, :length]
        self.lengths[target] = length

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin of positions [rows, m]: [rows, m, 1, 1, head_dim] each."""
        cos, sin = self._cos[positions], self._signed_sin[positions]
        return cos[..., None, None, :], sin[..., None, None, :]


class Window:
    """One pass of m new tokens over neighbouring rows of a cache: rotation, storing, attention.

    Token j of a row stands at position `length + j` and sees all positions up to its own. The pass
    does not change the lengths: whoever made it says how many of the tokens count.
    """

    def __init__(
        self,
        cache: KVCache,
        first_row: int,
        rows: int,
        tokens: int,
        key_length: int | None = None,
    ) -> None:
        """Prepare what all layers share.

        With `key_length` every query is compared with so many keys, most of them hidden, whatever
        the lengths: passes of one shape then compute the same bits for a position, however tokens
        are cut into passes. Raises ValueError when the tokens do not fit.
        """
        lengths = cache.lengths[first_row : first_row + rows]
        end = max(lengths) + tokens
        seen = end if key_length is None else key_length
        if end > seen or seen > cache.capacity:
            raise ValueError(f"{end} positions do not fit {seen} keys of {cache.capacity}")
        here = slice(first_row, first_row + rows)
        # Views of all layers at once: cut out layer by layer they cost as much as a small product.
        self._keys = cache.keys[:, here, :, :seen].unbind(0)
        self._values = cache.values[:, here, :, :seen].unbind(0)
        even = min(lengths) == max(lengths)
        self._positions = _positions(lengths[:1] if even else lengths, tokens, cache.keys.device)
        self._cos, self._sin = cache.rotation(self._positions)
        self._new_keys = self._new_values = None
        if even:
            self._new_keys = cache.keys[:, here, :, lengths[0] : end].unbind(0)
            self._new_values = cache.values[:, here, :, lengths[0] : end].unbind(0)
        free = key_length is None and even
        self._causal = free and lengths[0] == 0 and tokens > 1
        self._mask = None if self._causal or (free and tokens == 1) else self._visible_up_to()

    def _visible_up_to(self) -> Tensor:
        """[1 or rows, 1, m, keys]: 0 where a query sees a key, minus infinity elsewhere."""
        keys = self._keys[0]
        hidden = torch.arange(keys.shape[2], device=keys.device) > self._positions.unsqueeze(-1)
        mask = torch.zeros(hidden.shape, dtype=keys.dtype, device=keys.device)
        return mask.masked_fill_(hidden, -torch.inf).unsqueeze(1)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary embedding (Su et al. 2104.09864, halves form) of x [rows, m, KV heads, n, dim]."""
        return torch.addcmul(x * self._cos, x.roll(x.shape[-1] // 2, -1), self._sin)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the new keys and values and attend to all of their row.

        query: [rows, m, KV heads, queries that share a key, head_dim], key, value: [rows, m, KV
        heads, head_dim], query and key rotated. Returns [rows, m, heads * head_dim].
        """
        self._store(layer, key, value)
        keys, values = self._keys[layer], self._values[layer]
        rows, tokens, _, group, _ = query.shape
        if self._causal:
            heads = query.flatten(2, 3).transpose(1, 2)
            out = F.scaled_dot_product_attention(
                heads, keys, values, is_causal=True, enable_gqa=group > 1
            )
            return out.transpose(1, 2).reshape(rows, tokens, -1)
        # Queries that share a key as rows of one product: the kernel would copy keys for each head.
        folded = query.permute(0, 2, 3, 1, 4).flatten(2, 3)
        out = F.scaled_dot_product_attention(folded, keys, values, self._mask_for(group))
        out = out.view(rows, -1, group, tokens, out.shape[-1])
        return out.permute(0, 3, 1, 2, 4).reshape(rows, tokens, -1)

    def _store(self, layer: int, key: Tensor, value: Tensor) -> None:
        if self._new_keys is not None and self._new_values is not None:
            self._new_keys[layer].copy_(key.transpose(1, 2))
            self._new_values[layer].copy_(value.transpose(1, 2))
        else:
            row = torch.arange(len(key), device=key.device).unsqueeze(-1)
            self._keys[layer][row, :, self._positions] = key
            self._values[layer][row, :, self._positions] = value

    def _mask_for(self, group: int) -> Tensor | None:
        """The mask with its query rows repeated for each query head of a group."""
        if self._mask is not None and self._mask.shape[2] != group * self._positions.shape[1]:
            self._mask = self._mask.repeat(1, 1, group, 1)
        return self._mask


def _positions(lengths: Sequence[int], tokens: int, device: torch.device) -> Tensor:
    """[rows, tokens] int64 positions of the new tokens."""
    start = torch.tensor(lengths, dtype=torch.int64, device=device).unsqueeze(-1)
    return start + torch.arange(tokens, device=device)
