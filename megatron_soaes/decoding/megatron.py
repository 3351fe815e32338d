"""Generation with a Megatron-Core model, in the layout it was built for.

The weights are the model's own, as they are when a batch begins, sharded as they are; the
arithmetic is `decoder.run_layers`. Megatron-Core's inference context would rotate the whole prefix
in every step, give all rows one length and hide no later token from several new ones; and its
modules cost as much again as the arithmetic of a small model. The parameters of local layers and of
Transformer Engine's have the same layout, so both can be read; shown on CPU over gloo with local
layers only, never yet on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from torch import Tensor

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
from megatron_soaes.losses.cross_entropy import token_losses
from megatron_soaes.losses.vocab_parallel import columns_of_rank, gather_from_ranks
from megatron_soaes.models.weights import checkpoint_key
from megatron_soaes.recipe.shapes import ModelShape

T = TypeVar("T")


class MegatronGenerator:
    """A `Generator` of this rank's part of a model; all calls are collective over the world.

    Each replica (data-parallel rank) works on its share of the prompts, `batch_size` at a time, and
    every rank gets all results. Pipeline stages work one after the other.
    """

    def __init__(
        self, shape: ModelShape, chunks: Sequence[GPTModel], text_of: TextOf, batch_size: int = 32
    ) -> None:
        """Raises UserError for a layout that cannot generate, naming it."""
        _refuse(chunks)
        self.chunk = chunks[0]
        self._model = _Model(shape, self.chunk)
        self._text_of = text_of
        self._batch_size = batch_size

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """See `Generator`."""
        batching.check_prompts(prompts, self._model, sampling.max_new_tokens)
        mine = batching.generate(
            self._model, _share(prompts), sampling, self._batch_size, self._text_of
        )
        return _of_all_replicas(mine)

    def log_likelihoods(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """See `Generator`."""
        batching.check_requests(requests, self._model)
        mine = batching.log_likelihoods(self._model, _share(requests), self._batch_size)
        return _of_all_replicas(mine)


def _refuse(chunks: Sequence[GPTModel]) -> None:
    config = chunks[0].config
    layout = "Build the model for generation in another layout; any checkpoint loads in it."
    wrong = {
        "virtual_pipeline": (len(chunks) > 1, f"{len(chunks)} model chunks a rank", layout),
        "context_parallel": (
            config.context_parallel_size > 1, f"{config.context_parallel_size} ranks", layout,
        ),
        "sequence_parallel": (config.sequence_parallel, "true", layout),
        "precision.fp8": (
            config.fp8 is not None, str(config.fp8), "Build the model for generation in bf16."
        ),
    }  # fmt: skip
    for field, (found, what, fix) in wrong.items():
        if found:
            raise UserError(field, what, "none of it while text is generated", fix)


def _share(items: Sequence[T]) -> list[T]:
    """This replica's part: every n-th item."""
    rank = parallel_state.get_data_parallel_rank()
    return list(items[rank :: parallel_state.get_data_parallel_world_size()])


def _of_all_replicas(mine: list[T]) -> list[T]:
    """The results of all replicas in the order of what was shared out (collective)."""
    ranks = parallel_state.get_data_parallel_world_size()
    if ranks == 1:
        return mine
    parts: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(parts, mine, parallel_state.get_data_parallel_group())
    results: list[Any] = [None] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        results[rank::ranks] = part
    return results


class _Shard(Whole):
    """This tensor-parallel rank's heads and columns."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__(shape)
        self._tensor = parallel_state.get_tensor_model_parallel_group()
        ranks = self._tensor.size()
        self._ranks_a_group = max(1, ranks // shape.kv_heads)
        """Ranks that share a key head."""
        self._whole_group = self.group
        self.group //= self._ranks_a_group
        self.kv_heads = max(1, shape.kv_heads // ranks)

    def heads(self, qkv: Tensor) -> Tensor:
        if self._ranks_a_group == 1:
            return super().heads(qkv)
        # Rows were dealt out regardless of groups: put them together, then take this rank's.
        whole = gather_from_tensor_model_parallel_region(qkv, group=self._tensor)
        groups = whole.view(*whole.shape[:-1], -1, self._whole_group + 2, self._head_dim)
        group, place = divmod(self._tensor.rank(), self._ranks_a_group)
        queries = groups[..., group, place * self.group : (place + 1) * self.group, :]
        return torch.cat((queries, groups[..., group, -2:, :]), dim=-2).unsqueeze(-3)

    def sum(self, partial: Tensor) -> Tensor:
        if self._tensor.size() > 1:
            torch.distributed.all_reduce(partial, group=self._tensor)
        return partial


class _Model:
    """One pipeline stage behind the batching's interface."""

    def __init__(self, shape: ModelShape, chunk: GPTModel) -> None:
        self.shape = shape
        self.chunk = chunk
        self.part = _Shard(shape)
        self.vocab_size = shape.vocab_size
        self.max_position = shape.max_position
        self.device = next(chunk.parameters()).device

    @contextmanager
    def open(self, rows: int, capacity: int) -> Iterator[_Session]:
        """Rows for the batching to work on."""
        cache = KVCache(
            self.shape,
            layers=len(self.chunk.decoder.layers),
            kv_heads=self.part.kv_heads,
            rows=rows,
            capacity=capacity,
            dtype=self.chunk.config.params_dtype,
            device=self.device,
        )
        yield _Session(self, cache)


class _Session(Session):
    """A cache of one pipeline stage behind the batching's interface; collective over a replica."""

    def __init__(self, model: _Model, cache: KVCache) -> None:
        super().__init__(cache)
        self._model = model
        # Read anew for each batch: optimizers move parameters to other memory.
        named = model.chunk.named_parameters()
        self._weights = {checkpoint_key(name): one.detach() for name, one in named}
        count = len(model.chunk.decoder.layers)
        self._layers = layers_of(self._weights, count, model.shape, model.part)

    def _hidden(self, first_row: int, tokens: Tensor) -> Tensor | None:
        model = self._model
        window = Window(self._cache, first_row, *tokens.shape)
        if model.chunk.pre_process:
            embedded = model.chunk.embedding(input_ids=tokens, position_ids=None)
            x = embedded.transpose(0, 1).contiguous()
        else:
            size = (*tokens.shape, model.shape.hidden)
            x = torch.empty(size, dtype=model.chunk.config.params_dtype, device=model.device)
            _receive(x)
        x = run_layers(x, self._layers, window, model.shape, model.part)
        if model.chunk.post_process:
            return final_norm(x, self._weights, model.shape)
        _send(x)
        return None

    def _choose(self, hidden: Tensor, sampling: Sampling, draws: Sequence[float]) -> Tensor:
        logits = self._logits(hidden)
        if sampling.greedy:
            return _most_likely(logits)
        whole = gather_from_tensor_model_parallel_region(logits)
        return next_tokens(whole[:, : self._model.vocab_size], sampling, draws)

    def _judge(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(hidden)
        losses = token_losses(logits[None], labels[None], self._model.vocab_size)[0]
        return -losses, _most_likely(logits) == labels

    def _logits(self, hidden: Tensor) -> Tensor:
        """This rank's columns of the logits of [n, hidden] states: fp32, no padding row likely."""
        weight = self._weights.get(OUTPUT)
        logits = F.linear(hidden, self._weights[EMBEDDING] if weight is None else weight).float()
        logits[:, columns_of_rank(logits, self._model.vocab_size).real :] = -torch.inf
        return logits

    def _from_last_stage(self, tensor: Tensor) -> Tensor:
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            torch.distributed.broadcast(
                tensor,
                parallel_state.get_pipeline_model_parallel_last_rank(),
                parallel_state.get_pipeline_model_parallel_group(),
            )
        return tensor


def _most_likely(logits: Tensor) -> Tensor:
    """int64 [n] ids of the largest of vocab-parallel logits [n, vocabulary / tensor_parallel].

    Each rank finds its own best; only these are compared. Of equals the lowest id wins.
    """
    best, ids = logits.max(-1)
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return ids
    ids = ids + parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
    # One exchange for both, which are exact in fp64.
    values, candidates = gather_from_ranks(torch.stack((best.double(), ids.double()))).unbind(1)
    winner = values.argmax(0, keepdim=True)
    return candidates.gather(0, winner)[0].long()


def _receive(hidden: Tensor) -> None:
    group = parallel_state.get_pipeline_model_parallel_group()
    source = parallel_state.get_pipeline_model_parallel_prev_rank()
    torch.distributed.recv(hidden, source, group)


def _send(hidden: Tensor) -> None:
    group = parallel_state.get_pipeline_model_parallel_group()
    target = parallel_state.get_pipeline_model_parallel_next_rank()
    torch.distributed.send(hidden.contiguous(), target, group)
