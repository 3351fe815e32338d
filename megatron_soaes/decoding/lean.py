"""A model on one device, read from an HF directory: weights, a cache and nothing between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from megatron_soaes.checkpoint.hf_files import HFWeights
from megatron_soaes.decoding import batching
from megatron_soaes.decoding.cache import KVCache, Window
from megatron_soaes.decoding.decoder import (
    EMBEDDING,
    OUTPUT,
    Whole,
    final_norm,
    layers_of,
    run_layers,
)
from megatron_soaes.decoding.interface import (
    Completion,
    LogLikelihood,
    Prompt,
    Request,
    Sampling,
    TextOf,
)
from megatron_soaes.decoding.sampling import next_tokens
from megatron_soaes.decoding.session import Session
from megatron_soaes.errors import UserError
from megatron_soaes.models.families import weight_table
from megatron_soaes.models.weights import slices
from megatron_soaes.recipe.shapes import ModelShape, read_shape

CPU = torch.device("cpu")


class LeanModel:
    """A decoder of the supported families, read from an HF directory."""

    def __init__(
        self, hf_dir: Path, dtype: torch.dtype = torch.float32, device: torch.device = CPU
    ) -> None:
        """Raises UserError for a directory that is incomplete or of another family."""
        self.shape = read_shape(hf_dir / "config.json")
        self.dtype, self.device = dtype, device
        self._weights = _read(hf_dir, self.shape, dtype, device)
        self._part = Whole(self.shape)
        self._layers = layers_of(self._weights, self.shape.layers, self.shape, self._part)
        self._output = self._weights[EMBEDDING if self.shape.tied_embeddings else OUTPUT]

    @property
    def vocab_size(self) -> int:
        """Token ids lie below this."""
        return self.shape.vocab_size

    @property
    def max_position(self) -> int:
        """Longest sequence that the model was made for."""
        return self.shape.max_position

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for sequences of up to `capacity` tokens."""
        return KVCache(
            self.shape,
            layers=self.shape.layers,
            kv_heads=self.shape.kv_heads,
            rows=rows,
            capacity=capacity,
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def hidden(
        self, tokens: Tensor, cache: KVCache, first_row: int = 0, key_length: int | None = None
    ) -> Tensor:
        """Run new tokens of some rows through all layers.

        tokens: int64 [rows, m], any m >= 1, that stand after what the cache holds of rows
        `first_row`, `first_row` + 1, ... Returns [rows, m, hidden], normed for `logits`. Their keys
        and values are stored, but the lengths stay: add how many tokens are kept to `cache.lengths`
        (speculative decoding keeps those that were accepted). `key_length`: see `Window`.
        """
        rows, count = tokens.shape
        window = Window(cache, first_row, rows, count, key_length)
        x = F.embedding(tokens, self._weights[EMBEDDING])
        x = run_layers(x, self._layers, window, self.shape, self._part)
        return final_norm(x, self._weights, self.shape)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [..., vocabulary] of normed hidden states [..., hidden]."""
        return F.linear(hidden, self._output).float()

    @contextmanager
    def open(self, rows: int, capacity: int) -> Iterator[_Session]:
        """Rows for the batching to work on."""
        yield _Session(self, self.new_cache(rows, capacity))


def _read(
    hf_dir: Path, shape: ModelShape, dtype: torch.dtype, device: torch.device
) -> dict[tuple[str, int | None], Tensor]:
    """Every weight of the family's table."""
    source = HFWeights(hf_dir)
    weights = {}
    for weight, layer in slices(weight_table(shape), range(shape.layers)):
        parts = []
        for name, expected in weight.hf_shapes(shape, layer).items():
            stored = source.tensors.get(name)
            if stored is None or stored.shape != expected:
                raise UserError(
                    f"{hf_dir}: {name}", f"shape {list(stored.shape)}" if stored else "nothing",
                    f"a tensor {list(expected)}, as config.json says",
                    "Download or export the model again.",
                )  # fmt: skip
            parts.append(source.read(name))
        weights[weight.key, layer] = weight.transform.join(shape, parts).to(device, dtype)
    return weights


class _Session(Session):
    """A cache of a lean model behind the batching's interface."""

    def __init__(self, model: LeanModel, cache: KVCache) -> None:
        super().__init__(cache)
        self._model = model

    def _hidden(self, first_row: int, tokens: Tensor) -> Tensor:
        return self._model.hidden(tokens, self._cache, first_row)

    def _choose(self, hidden: Tensor, sampling: Sampling, draws: Sequence[float]) -> Tensor:
        return next_tokens(self._model.logits(hidden), sampling, draws)

    def _judge(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._model.logits(hidden)
        return -F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels


class LeanGenerator:
    """A `Generator` of a lean model: the prompts share `batch_size` rows of the cache."""

    def __init__(self, model: LeanModel, text_of: TextOf, batch_size: int = 32) -> None:
        self._model = model
        self._text_of = text_of
        self._batch_size = batch_size

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """See `Generator`."""
        return batching.generate(self._model, prompts, sampling, self._batch_size, self._text_of)

    def log_likelihoods(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """See `Generator`."""
        return batching.log_likelihoods(self._model, requests, self._batch_size)
