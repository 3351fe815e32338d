"""Which parts of which HF tensors each rank of a TensorRT-LLM checkpoint holds.

The format is that of TensorRT-LLM 1.0 (models/*/convert.py, modeling_utils.py, mapping.py), the
last of its kind in 1.2.1. Shapes are [outputs, inputs], as in HF. Nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.shapes import ModelShape

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
OUTPUT = "lm_head.weight"
HF_LAYER = "model.layers.{}."
LAYER = "transformer.layers.{}."


@dataclass(frozen=True)
class Parallelism:
    """How a checkpoint is cut."""

    tensor: int
    pipeline: int
    embedding_axis: int | None = None
    """0 or 1 when the embedding is cut too, by tokens or by features; otherwise each rank of the
    first stage holds all of it."""

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline

    def stage(self, rank: int) -> int:
        """Pipeline stage of a rank: the ranks of a stage follow one another."""
        return rank // self.tensor


@dataclass(frozen=True)
class Piece:
    """The box `start:stop` along `axis` of an HF tensor."""

    source: str
    axis: int
    start: int
    stop: int


@dataclass(frozen=True)
class RankTensor:
    """A tensor of one rank: its pieces one below the other, then zero rows up to its shape."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    replicated: bool = False
    """Whether all ranks of the stage hold the same."""
    dtype: str | None = None
    """None for that of the checkpoint."""


@dataclass(frozen=True)
class Destination:
    """Where a piece of an HF tensor goes: the rows of a rank's tensor from `row` on."""

    rank: int
    tensor: RankTensor
    row: int
    piece: Piece


def require_legal(shape: ModelShape, parallelism: Parallelism) -> None:
    """Raise UserError unless heads, features and layers can be cut so."""
    ways, stages = parallelism.tensor, parallelism.pipeline
    if ways < 1 or not _divides(shape, ways):
        legal = [n for n in range(1, shape.heads + 1) if _divides(shape, n)]
        raise UserError(
            "tp", str(ways),
            f"a divisor of {shape.heads} query heads, {shape.hidden} features and {shape.ffn} MLP "
            f"features that divides {shape.kv_heads} key heads or is a multiple of them",
            f"Choose one of {', '.join(map(str, legal))}.",
        )  # fmt: skip
    if not 1 <= stages <= shape.layers:
        raise UserError(
            "pp", str(stages), f"1 to {shape.layers}, the number of layers", "Choose fewer stages."
        )


def _divides(shape: ModelShape, ways: int) -> bool:
    whole = all(size % ways == 0 for size in (shape.heads, shape.hidden, shape.ffn))
    return whole and (shape.kv_heads % ways == 0 or ways % shape.kv_heads == 0)


def stage_layers(layers: int, stages: int) -> list[range]:
    """The layers of each pipeline stage; the first `layers % stages` stages have one more."""
    sizes = [layers // stages + (stage < layers % stages) for stage in range(stages)]
    starts = [sum(sizes[:stage]) for stage in range(stages)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def key_heads(shape: ModelShape, ways: int, way: int) -> range:
    """The key (and value) heads of one of `ways` ranks; fewer heads than ranks are shared."""
    if ways > shape.kv_heads:
        head = way * shape.kv_heads // ways
        return range(head, head + 1)
    each = shape.kv_heads // ways
    return range(way * each, (way + 1) * each)


def rank_tensors(
    shape: ModelShape, vocab_size: int, parallelism: Parallelism, rank: int
) -> list[RankTensor]:
    """Every tensor of `rank{rank}.safetensors`, in the order of the file."""
    cut = _Cut(shape, vocab_size, parallelism, rank % parallelism.tensor)
    stage = parallelism.stage(rank)
    tensors = [cut.embedding()] if stage == 0 else []
    for local, layer in enumerate(stage_layers(shape.layers, parallelism.pipeline)[stage]):
        tensors += cut.layer(LAYER.format(local), HF_LAYER.format(layer))
    if stage == parallelism.pipeline - 1:
        tensors += [cut.whole("transformer.ln_f.weight", FINAL_NORM, shape.hidden), cut.output()]
    return tensors


@dataclass(frozen=True)
class _Cut:
    """The part of one of `ways.tensor` ranks."""

    shape: ModelShape
    vocab_size: int
    ways: Parallelism
    way: int

    def whole(self, name: str, source: str, *shape: int) -> RankTensor:
        return RankTensor(name, shape, (Piece(source, 0, 0, shape[0]),), replicated=True)

    def embedding(self) -> RankTensor:
        name, hidden = "transformer.vocab_embedding.weight", self.shape.hidden
        if self.ways.embedding_axis is None:
            return self.whole(name, EMBEDDING, self.vocab_size, hidden)
        if self.ways.embedding_axis == 1:
            return self._columns(name, EMBEDDING, self.vocab_size, hidden)
        return self._tokens(name, EMBEDDING)

    def output(self) -> RankTensor:
        return self._tokens(OUTPUT, EMBEDDING if self.shape.tied_embeddings else OUTPUT)

    def layer(self, to: str, hf: str) -> list[RankTensor]:
        shape = self.shape
        tensors = [
            self.whole(to + "input_layernorm.weight", hf + "input_layernorm.weight", shape.hidden),
            self._qkv(to, hf, "weight", shape.hidden),
        ]
        if shape.qkv_bias:
            tensors.append(self._qkv(to, hf, "bias"))
        if shape.qk_norm:
            tensors += [
                self.whole(
                    f"{to}attention.{x}_layernorm.weight", f"{hf}self_attn.{x}_norm.weight",
                    shape.head_dim,
                )
                for x in "qk"
            ]  # fmt: skip
        post = "post_layernorm.weight", "post_attention_layernorm.weight"
        return [
            *tensors,
            self._columns(
                to + "attention.dense.weight", hf + "self_attn.o_proj.weight",
                shape.hidden, shape.query_width,
            ),
            self.whole(to + post[0], hf + post[1], shape.hidden),
            # TensorRT-LLM's "fc" is the projection that is activated, HF's gate; its "gate" is what
            # that is multiplied with, HF's up.
            self._rows(to + "mlp.fc.weight", hf + "mlp.gate_proj.weight", shape.ffn, shape.hidden),
            self._rows(to + "mlp.gate.weight", hf + "mlp.up_proj.weight", shape.ffn, shape.hidden),
            self._columns(
                to + "mlp.proj.weight", hf + "mlp.down_proj.weight", shape.hidden, shape.ffn
            ),
        ]  # fmt: skip

    def _qkv(self, to: str, hf: str, kind: str, *inputs: int) -> RankTensor:
        size = self.shape.head_dim
        each = self.shape.heads // self.ways.tensor
        keys = key_heads(self.shape, self.ways.tensor, self.way)
        heads = {"q": range(self.way * each, (self.way + 1) * each), "k": keys, "v": keys}
        pieces = tuple(
            Piece(f"{hf}self_attn.{x}_proj.{kind}", 0, part.start * size, part.stop * size)
            for x, part in heads.items()
        )
        rows = (each + 2 * len(keys)) * size
        return RankTensor(f"{to}attention.qkv.{kind}", (rows, *inputs), pieces)

    def _rows(self, name: str, source: str, rows: int, columns: int) -> RankTensor:
        each = rows // self.ways.tensor
        piece = Piece(source, 0, self.way * each, (self.way + 1) * each)
        return RankTensor(name, (each, columns), (piece,))

    def _columns(self, name: str, source: str, rows: int, columns: int) -> RankTensor:
        each = columns // self.ways.tensor
        piece = Piece(source, 1, self.way * each, (self.way + 1) * each)
        return RankTensor(name, (rows, each), (piece,))

    def _tokens(self, name: str, source: str) -> RankTensor:
        """Rows of a vocabulary that is padded to a multiple of the ranks."""
        each = math.ceil(self.vocab_size / self.ways.tensor)
        bounds = (min(n * each, self.vocab_size) for n in (self.way, self.way + 1))
        return RankTensor(name, (each, self.shape.hidden), (Piece(source, 0, *bounds),))


def destinations(ranks: Sequence[Sequence[RankTensor]]) -> dict[str, list[Destination]]:
    """Where each HF tensor goes, by its name; `ranks` holds the tensors of each rank."""
    found: dict[str, list[Destination]] = {}
    for rank, tensors in enumerate(ranks):
        for tensor in tensors:
            row = 0
            for piece in tensor.pieces:
                found.setdefault(piece.source, []).append(Destination(rank, tensor, row, piece))
                row += piece.stop - piece.start if piece.axis == 0 else tensor.shape[0]
    return found


def parts_of(
    block: Tensor, first: int, targets: Sequence[Destination]
) -> Iterator[tuple[Destination, int, Tensor]]:
    """What each destination takes of the rows `first`, `first + 1`, ... of an HF tensor.

    Yields the destination, the row of its tensor where the part begins, and the part: a view.
    """
    for target in targets:
        piece = target.piece
        if piece.axis == 1:
            yield target, target.row + first, block[:, piece.start : piece.stop]
            continue
        start, stop = max(piece.start, first), min(piece.stop, first + len(block))
        if start < stop:
            yield target, target.row + start - piece.start, block[start - first : stop - first]
