"""Text as shards, and the shards of all ranges as one dataset for each JSON key.

For the n-th key a shard holds `n.tokens` (the bytes of a `.bin`) and `n.lengths` (int32, the tokens
of every document).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from data_prep.datasets.checksums import Piece
from data_prep.documents import BadDocumentError
from data_prep.encoders import Encoder
from data_prep.indexed import TokenLengths, Writable, concatenate, token_dtype, write_index
from data_prep.ranges import InputRange
from data_prep.readers import read_batches
from data_prep.shards import Counts, EncodedBatch, ShardJob, shard_files, shard_pieces


@dataclass
class TextCounts(Counts):
    """`tokens` and `sequences` are by key."""

    tokens: dict[str, int] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TextJob(ShardJob[TextCounts]):
    """Texts at JSON keys, a dataset for each key."""

    keys: tuple[str, ...]
    append_eod: bool

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(f"{n}.{kind}" for n in range(len(self.keys)) for kind in ("tokens", "lengths"))

    def no_counts(self) -> TextCounts:
        zero = dict.fromkeys(self.keys, 0)
        return TextCounts(tokens=dict(zero), sequences=dict(zero))

    def encode_range(
        self, source: InputRange, encoder: Encoder
    ) -> Iterator[EncodedBatch[TextCounts]]:
        for batch in read_batches(source, self.keys):
            documents = batch.lines - batch.blank - len(batch.bad)
            counts = TextCounts(batch.lines, batch.blank, documents)
            arrays: list[npt.NDArray[Any]] = []
            for key in self.keys:
                tokens, lengths = self._encode(encoder, batch.texts[key])
                counts.tokens[key] = len(tokens)
                counts.sequences[key] = int(np.count_nonzero(lengths))
                arrays += (tokens, lengths)
            yield EncodedBatch(tuple(arrays), counts, batch.bad, batch.size)

    def rule(self, problem: BadDocumentError) -> tuple[str, str]:
        return (
            f"a JSON object with a string at {', '.join(map(repr, self.keys))}",
            "Correct the line, or collect such lines in a file with --skip-bad-lines FILE.",
        )

    def _encode(self, encoder: Encoder, texts: list[str]) -> tuple[npt.NDArray[Any], TokenLengths]:
        """Tokens of all texts in a row, in the dtype of the `.bin`, and int32 [len(texts)] lengths.

        As in Megatron's tool, the end-of-document token follows only a text that has tokens.
        """
        ids, lengths = encoder.encode_batch(texts)
        dtype = token_dtype(self.tokenizer.vocab_size)
        if not self.append_eod:
            return ids.astype(dtype), lengths.astype("<i4")
        lengths = lengths + (lengths > 0)
        tokens = np.empty(int(lengths.sum()), dtype=dtype)
        is_text = np.ones(len(tokens), dtype=bool)
        is_text[np.cumsum(lengths[lengths > 0]) - 1] = False
        tokens[is_text] = ids
        tokens[~is_text] = self.tokenizer.eod_id
        return tokens, lengths.astype("<i4")


def merge_tokens(
    stream: IO[bytes], job: TextJob, ranges: list[InputRange], key: str
) -> list[Piece]:
    """Write the `.bin` of one key, the shards in corpus order; returns their checksums."""
    name = f"{job.keys.index(key)}.tokens"
    concatenate(stream, shard_files(job, ranges, name))
    return list(shard_pieces(job, ranges, name))


def merge_index(
    stream: Writable, job: TextJob, ranges: list[InputRange], key: str, counts: TextCounts
) -> None:
    """Write the `.idx` of one key; `counts` is the sum over `ranges`."""

    def document_lengths() -> Iterator[TokenLengths]:
        for path in shard_files(job, ranges, f"{job.keys.index(key)}.lengths"):
            yield np.fromfile(path, dtype="<i4")

    dtype = token_dtype(job.tokenizer.vocab_size)
    write_index(stream, dtype, counts.documents, counts.sequences[key], document_lengths)
