"""Conversations as shards: token ids, loss weights and sources.

A shard holds `tokens` (the bytes of a `.bin`), `weights` (float32, as many), `lengths` (int32 for
each conversation), `sources` (uint32 for each conversation: a line of `source-names`) and
`source-names` (a JSON string a line, in the order of their first conversation).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from data_prep.documents import BadDocumentError, check_surrogates
from data_prep.encoders import Encoder, Ids
from data_prep.indexed import token_dtype
from data_prep.ranges import InputRange
from data_prep.sft.problems import RULES, Problem, RecordError
from data_prep.sft.reader import NumberedRecord, read_records
from data_prep.sft.records import Conversation, RecordReader, TrainOn
from data_prep.sft.turns import Chat, RenderedConversation
from data_prep.shards import Counts, EncodedBatch, ShardJob

TooLong = Literal["refuse", "truncate", "drop"]
Weights = npt.NDArray[np.float32]

LINE_RULE = ("a JSON object", "Correct the line, or collect such lines with --skip-bad-lines FILE.")


class Dropped(StrEnum):
    """Why a good record is left out."""

    TOO_LONG = "too_long"
    NO_TRAINED_TOKEN = "no_trained_token"
    CUT_BEFORE_ANSWER = "cut_before_answer"


@dataclass
class SFTCounts(Counts):
    """`turns` and the tokens are those of the conversations that were kept."""

    turns: int = 0
    """Assistant turns."""
    trained_turns: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    conversations: dict[str, int] = field(default_factory=dict)
    """This and the next two are by source."""
    tokens: dict[str, int] = field(default_factory=dict)
    trained_tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A rendered record on its way to the tokenizer."""

    record: NumberedRecord
    conversation: Conversation
    rendered: RenderedConversation

    @property
    def texts(self) -> list[str]:
        """The whole text and the prompts of the answers."""
        return [self.rendered.text, *(answer.prompt for answer in self.rendered.answers)]


@dataclass(frozen=True)
class SFTJob(ShardJob[SFTCounts]):
    """Conversations, one sequence each."""

    reader: RecordReader
    chat: Chat
    train_on: TrainOn
    max_length: int | None
    too_long: TooLong

    @property
    def files(self) -> tuple[str, ...]:
        return ("tokens", "weights", "lengths", "sources", "source-names")

    def no_counts(self) -> SFTCounts:
        return SFTCounts()

    def rule(self, problem: BadDocumentError) -> tuple[str, str]:
        return RULES.get(problem.reason, LINE_RULE)

    def prepare(self, record: NumberedRecord) -> Prepared:
        """Read and render a record. Raises `BadDocumentError`."""
        try:
            conversation = self.reader.read(record.value)
            if record.may_hold_surrogates:
                for position, turn in enumerate(conversation.turns):
                    check_surrogates(turn.content, f"in {conversation.name(position)}", record.raw)
                check_surrogates(conversation.source, "in the source", record.raw)
            rendered = self.chat.render(conversation, self.train_on)
        except RecordError as error:
            raise BadDocumentError(error.problem, error.found, record.raw) from error
        return Prepared(record, conversation, rendered)

    def encode(self, record: NumberedRecord, encoder: Encoder) -> Ids:
        """The ids of one record by itself. Raises `BadDocumentError` as `encode_range` collects it.

        Whether it is too long is not asked.
        """
        prepared = self.prepare(record)
        ((whole, *prompts),) = _encode_all([prepared], encoder)
        try:
            self.weigh(prepared.rendered, [whole, *prompts], prepared.conversation.weight)
        except RecordError as error:
            raise BadDocumentError(error.problem, error.found, record.raw) from error
        return whole

    def encode_range(
        self, source: InputRange, encoder: Encoder
    ) -> Iterator[EncodedBatch[SFTCounts]]:
        names: dict[str, int] = {}
        for batch in read_records(source):
            bad = list(batch.bad)
            prepared: list[Prepared] = []
            for record in batch.records:
                try:
                    prepared.append(self.prepare(record))
                except BadDocumentError as problem:
                    bad.append((record.number, problem))
            writer = _BatchWriter(self, names)
            for one, ids in zip(prepared, _encode_all(prepared, encoder), strict=True):
                try:
                    writer.add(one, ids)
                except RecordError as error:
                    refused = BadDocumentError(error.problem, error.found, one.record.raw)
                    bad.append((one.record.number, refused))
            bad.sort(key=lambda numbered: numbered[0])
            writer.counts.lines, writer.counts.blank = batch.lines, batch.blank
            yield EncodedBatch(writer.arrays(), writer.counts, bad, batch.size)

    def weigh(self, rendered: RenderedConversation, ids: list[Ids], weight: float) -> Weights:
        """The loss weight of predicting each token of a conversation, float32 [tokens].

        `ids` are those of the whole text and of the prompt of each answer. `weight` stands on the
        tokens of the answers, the one that ends each included, 0 on all others. Raises
        `RecordError` when the ids of a prompt are not how the whole begins, or when the text makes
        control tokens that the template does not.
        """
        whole = ids[0]
        control = np.flatnonzero(self._is_control[whole])
        if tuple(whole[control].tolist()) != rendered.control_ids:
            raise _forged()
        weights = np.zeros(len(whole), dtype=np.float32)
        for answer, prompt in zip(rendered.answers, ids[1:], strict=True):
            start = len(prompt)
            if not np.array_equal(whole[:start], prompt):
                found = f"a token that joins the prompt and the start of {answer.name}"
                raise RecordError(Problem.BORDER_INSIDE_TOKEN, found)
            inside = control[control >= start][: len(answer.control_ids)]
            if tuple(whole[inside].tolist()) != answer.control_ids:
                raise _forged()
            weights[start : inside[-1] + 1] = weight
        return weights

    @cached_property
    def _is_control(self) -> npt.NDArray[np.bool_]:
        """By id, whether it is that of a control token."""
        table = np.zeros(self.tokenizer.largest_id + 1, dtype=bool)
        table[[number for _, number in self.chat.control.ids]] = True
        return table


class _BatchWriter:
    """Collects the conversations of a batch; `names` are the sources of the range so far."""

    def __init__(self, job: SFTJob, names: dict[str, int]) -> None:
        self.counts = SFTCounts()
        self._job = job
        self._names = names
        self._known = len(names)
        self._tokens: list[Ids] = []
        self._weights: list[Weights] = []
        self._sources: list[int] = []

    def add(self, one: Prepared, ids: list[Ids]) -> None:
        """Keep, cut or drop a conversation. Raises `RecordError`."""
        job, counts = self._job, self.counts
        weights = job.weigh(one.rendered, ids, one.conversation.weight)
        tokens = ids[0]
        is_cut = job.max_length is not None and len(tokens) > job.max_length
        if not weights.any():
            return self._drop(Dropped.NO_TRAINED_TOKEN)
        if is_cut and job.too_long == "refuse":
            raise RecordError(Problem.TOO_LONG, f"{len(tokens):,} tokens")
        if is_cut and job.too_long == "drop":
            return self._drop(Dropped.TOO_LONG)
        if is_cut:
            tokens, weights = tokens[: job.max_length], weights[: job.max_length]
            if not weights.any():
                return self._drop(Dropped.CUT_BEFORE_ANSWER)
        counts.truncated += is_cut
        counts.documents += 1
        counts.turns += sum(turn.role == "assistant" for turn in one.conversation.turns)
        counts.trained_turns += int(np.count_nonzero((weights[1:] > 0) & (weights[:-1] == 0)))
        source = one.conversation.source
        for by_source, count in (
            (counts.conversations, 1),
            (counts.tokens, len(tokens)),
            (counts.trained_tokens, int(np.count_nonzero(weights))),
        ):
            by_source[source] = by_source.get(source, 0) + count
        self._tokens.append(tokens)
        self._weights.append(weights)
        self._sources.append(self._names.setdefault(source, len(self._names)))
        return None

    def _drop(self, reason: Dropped) -> None:
        self.counts.dropped[reason] = self.counts.dropped.get(reason, 0) + 1

    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """The contents of the job's files."""
        new = list(self._names)[self._known :]
        names = b"".join(orjson.dumps(name) + b"\n" for name in new)
        return (
            _joined(self._tokens, token_dtype(self._job.tokenizer.vocab_size)),
            _joined(self._weights, np.dtype("<f4")),
            np.array([len(tokens) for tokens in self._tokens], dtype="<i4"),
            np.array(self._sources, dtype="<u4"),
            np.frombuffer(names, dtype=np.uint8),
        )


def _forged() -> RecordError:
    found = "control tokens that the chat template does not write, made by the contents"
    return RecordError(Problem.CONTROL_TOKEN, found)


def _joined(parts: Iterable[npt.NDArray[Any]], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(part.astype(dtype) for part in parts)])


def _encode_all(prepared: list[Prepared], encoder: Encoder) -> Iterator[list[Ids]]:
    """The ids of each record's texts."""
    ids, lengths = encoder.encode_batch([text for one in prepared for text in one.texts])
    ends = np.cumsum(lengths).tolist()
    start = text = 0
    for one in prepared:
        parts: list[Ids] = []
        for _ in one.texts:
            parts.append(ids[start : ends[text]])
            start, text = ends[text], text + 1
        yield parts
