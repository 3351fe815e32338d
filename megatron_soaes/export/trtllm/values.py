"""The rules for the numbers in rank files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_soaes.export.trtllm.config_check import Checked
from megatron_soaes.export.trtllm.expected import FP8, INPUT_SCALE, WEIGHT_SCALE, Expected
from megatron_soaes.export.trtllm.layout import OUTPUT, key_heads
from megatron_soaes.export.trtllm.problems import Problem
from megatron_soaes.export.trtllm.rank_file import RankReader, same_bits

VOCABULARY = "transformer.vocab_embedding.weight"


@dataclass(frozen=True)
class Stage:
    """The files of one pipeline stage, by tensor rank, each with its tensors of right form."""

    ranks: Mapping[int, tuple[RankReader, Mapping[str, Expected]]]

    def holding(self, name: str) -> dict[int, RankReader]:
        """The files in which a tensor of this name can be looked at."""
        return {way: reader for way, (reader, sound) in self.ranks.items() if name in sound}

    def expected(self) -> dict[str, Expected]:
        """What any of the files holds; where they differ (in a vocabulary's rows), the first."""
        found: dict[str, Expected] = {}
        for _, sound in self.ranks.values():
            found = {**sound, **found}
        return found


def check_values(stage: Stage, checked: Checked) -> Iterator[Problem]:
    """Every rule that a single stage can break."""
    for name, wanted in stage.expected().items():
        readers = stage.holding(name)
        for reader in readers.values():
            yield from _finite(reader, name)
        if wanted.tensor is None:
            yield from _scale(readers, name)
        if wanted.tensor is None or wanted.tensor.replicated:
            yield from _replicated(readers, name)
        elif ".attention.qkv." in name:
            yield from _shared_heads(readers, name, checked)
        elif name == OUTPUT or (name == VOCABULARY and checked.parallelism.embedding_axis == 0):
            yield from _padding(readers, name, checked)
    yield from _gate_scales(stage)


def _finite(reader: RankReader, name: str) -> Iterator[Problem]:
    bad = sum(int((~torch.isfinite(_plain(block))).sum()) for _, block in reader.blocks(name))
    if bad:
        yield Problem(f"{reader.path}: {name}", f"{bad} values NaN or infinite", "finite values")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize == 1 else tensor


def _replicated(readers: Mapping[int, RankReader], name: str) -> Iterator[Problem]:
    if not readers:
        return
    first, *others = readers.values()
    for other in others:
        for row, block in first.blocks(name):
            if not same_bits(block, other.rows(name, row, row + len(block))):
                yield Problem(
                    f"{other.path}: {name}", "other values than in " + first.path.name,
                    "the same on all ranks of a stage",
                )  # fmt: skip
                break


def _shared_heads(
    readers: Mapping[int, RankReader], name: str, checked: Checked
) -> Iterator[Problem]:
    """Ranks that share a key head hold the same rows of it; query rows come before them."""
    shape, ways = checked.shape, checked.parallelism.tensor
    if ways <= shape.kv_heads:
        return
    first = shape.query_width // ways
    owners: dict[int, RankReader] = {}
    for way, reader in readers.items():
        owner = owners.setdefault(key_heads(shape, ways, way).start, reader)
        rows = first, first + 2 * shape.head_dim
        if not same_bits(reader.rows(name, *rows), owner.rows(name, *rows)):
            yield Problem(
                f"{reader.path}: {name}", "other key or value rows than in " + owner.path.name,
                "the same, because both hold the same key head",
            )  # fmt: skip


def _padding(readers: Mapping[int, RankReader], name: str, checked: Checked) -> Iterator[Problem]:
    for way, reader in readers.items():
        tokens, each = _tokens(checked, way)
        if tokens < each and reader.rows(name, tokens, each).float().any():
            yield Problem(
                f"{reader.path}: {name}", f"values in rows {tokens} to {each - 1}",
                f"zeros, because the vocabulary ends at {checked.config.vocab_size}",
            )  # fmt: skip


def _tokens(checked: Checked, way: int) -> tuple[int, int]:
    """Rows of a vocabulary's part that are tokens, and all its rows."""
    size = checked.config.vocab_size
    each = math.ceil(size / checked.parallelism.tensor)
    return min(max(size - way * each, 0), each), each


def _scale(readers: Mapping[int, RankReader], name: str) -> Iterator[Problem]:
    for reader in readers.values():
        value = reader.rows(name, 0, 1).item()
        if not value > 0:
            yield Problem(f"{reader.path}: {name}", f"{value:g}", "a scale above 0")


def _gate_scales(stage: Stage) -> Iterator[Problem]:
    """The engine may join fc and gate into one product, which has one scale."""
    for fc in stage.expected():
        if not fc.endswith((".mlp.fc" + WEIGHT_SCALE, ".mlp.fc" + INPUT_SCALE)):
            continue
        gate = fc.replace(".mlp.fc.", ".mlp.gate.")
        for way, reader in stage.holding(gate).items():
            if way not in stage.holding(fc):
                continue
            if not same_bits(reader.rows(fc, 0, 1), reader.rows(gate, 0, 1)):
                yield Problem(f"{reader.path}: {gate}", "another scale", "that of mlp.fc")


def differing_rows(first: Stage, last: Stage, checked: Checked) -> list[Problem]:
    """Parts of the output layer that are not those rows of the embedding."""
    problems: list[Problem] = []
    embedding = first.holding(VOCABULARY)
    for way, reader in last.holding(OUTPUT).items():
        quantised = last.ranks[way][1][OUTPUT].dtypes == FP8
        if quantised or len(embedding) < checked.parallelism.tensor:
            continue
        tokens, _ = _tokens(checked, way)
        for row, block in reader.blocks(OUTPUT):
            rows = row, min(row + len(block), tokens)
            if rows[0] < rows[1] and not same_bits(
                block[: rows[1] - row], _embedding_rows(embedding, checked, way, *rows)
            ):
                problems.append(
                    Problem(
                        f"{reader.path}: {OUTPUT}", "other values than the embedding",
                        "the same, because config.json says tie_word_embeddings",
                    )
                )  # fmt: skip
                break
    return problems


def _embedding_rows(
    embedding: Mapping[int, RankReader], checked: Checked, way: int, first: int, last: int
) -> Tensor:
    """Rows of the part of the vocabulary that the output layer has on rank `way`."""
    axis = checked.parallelism.embedding_axis
    if axis == 0:
        return embedding[way].rows(VOCABULARY, first, last)
    _, each = _tokens(checked, way)
    first, last = first + way * each, last + way * each
    if axis is None:
        return embedding[way].rows(VOCABULARY, first, last)
    return torch.cat([embedding[w].rows(VOCABULARY, first, last) for w in sorted(embedding)], dim=1)
