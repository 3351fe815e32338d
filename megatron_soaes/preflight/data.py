"""Whether the text is there, can be read, and becomes tokens as the stages make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from data_prep.documents import BadDocumentError
from data_prep.encoders import Encoder, load_encoder
from data_prep.ranges import InputFile, InputRange, find_inputs, plan_ranges
from data_prep.readers import read_batches
from data_prep.sft.convert import load_job
from data_prep.sft.reader import NumberedRecord, read_records
from data_prep.sft.shards import SFTJob
from data_prep.work_directory import work_directory
from megatron_soaes.data.conversations import open_conversations
from megatron_soaes.data.indexed import open_documents
from megatron_soaes.errors import UserError
from megatron_soaes.preflight.findings import Found, Unseen
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.schema import (
    AnyTrainingStage,
    CaptureStage,
    EvaluateStage,
    Recipe,
    SingleStage,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.stages.datasets import conversations, documents, reading_for
from megatron_soaes.stages.mixtures import too_long_of
from megatron_soaes.stages.preprocess import PreprocessStage
from megatron_soaes.wording import counted

WHOLE = (0.0, 1.0)
SHORTEST = 1
"""Tokens that a given dataset must have; whether that is enough is for the recipe's lengths."""
Batch = TypeVar("Batch")


def check_dataset(recipe: Recipe, name: str, shape: ModelShape, *, tokenizer: bool) -> Found:
    """One dataset: every file and its first record, or the indexed files that are given.

    Without the target's `tokenizer` only plain text can be looked at.
    """
    dataset = recipe.data.datasets[name]
    if dataset.responses is not None:
        yield f"written by the stage {dataset.responses}"
    elif dataset.files and not dataset.is_chat:
        yield from _first_records(recipe, name, lambda file: _check_text(file, dataset.key, name))
    elif not tokenizer:
        if dataset.files:
            _preprocessing(recipe, name).files()  # whether they are there can be told
        yield Unseen(f"the dataset {name}: the target's tokenizer must be right first")
    elif dataset.files:
        yield from _first_records(recipe, name, _Chats.of(recipe, name).check)
    else:
        reading = reading_for(recipe, recipe.models.target, shape, SHORTEST)
        if dataset.is_chat:
            tokens, _ = open_conversations(conversations(recipe, name, WHOLE), reading.tokenizer)
            count = len(tokens)
        else:
            _, indices = open_documents(documents(recipe, name, WHOLE), reading.windows())
            count = len(indices)
        yield f"{counted(count, 'indexed record')}, with this tokenizer"


def _preprocessing(recipe: Recipe, name: str) -> PreprocessStage:
    return PreprocessStage(recipe, graph.preprocess_node(name), name)


def _first_records(recipe: Recipe, name: str, check: Callable[[InputFile], None]) -> Found:
    """Every file of a dataset by `check`, which raises UserError."""
    found = find_inputs(tuple(str(file) for file in _preprocessing(recipe, name).files()))
    wrong = []
    for file in found:
        try:
            check(file)
        except UserError as error:
            wrong.append(error)
    yield from wrong
    if not wrong:
        size = sum(file.size for file in found) / 1e9
        yield f"{counted(len(found), 'file')}, {size:,.2f} GB; the first record of each can be read"


def _check_text(file: InputFile, key: str, name: str) -> None:
    where, batch = _first_batch(file, (key,), lambda one: read_batches(one, (key,)))
    if batch.bad:
        number, problem = batch.bad[0]
        fix = f"Correct it, or data.datasets.{name}.key."
        raise UserError(where.place(number), problem.found, f"a text at '{key}'", fix)
    if not batch.texts[key]:
        raise _empty(file)


@dataclass(frozen=True)
class _Chats:
    """How the conversations of a dataset become tokens, as its preprocessing makes them."""

    name: str
    job: SFTJob
    encoder: Encoder
    longest: tuple[int, str] | None
    """Most tokens of a conversation, and the field that says so; None if nothing is refused."""

    @classmethod
    def of(cls, recipe: Recipe, name: str) -> _Chats:
        """Raises UserError for a chat template that is not there or cannot be trained on."""
        options = _preprocessing(recipe, name).chat_options()
        job, _, _ = load_job(options, work_directory(options.output_prefix))
        longest = min(_refused_above(recipe, name), default=None)
        return cls(name, job, load_encoder(job.tokenizer, "tokenizers"), longest)

    def check(self, file: InputFile) -> None:
        """Render and tokenize the first record; raises UserError."""
        where, batch = _first_batch(file, None, read_records)
        for record in batch.records[:1]:
            self._check(record, where.place(record.number))
        for number, problem in batch.bad[:1]:
            raise self._refused(problem, where.place(number))
        if not batch.records:
            raise _empty(file)

    def _check(self, record: NumberedRecord, place: str) -> None:
        try:
            tokens = len(self.job.encode(record, self.encoder))
        except BadDocumentError as problem:
            raise self._refused(problem, place) from None
        if self.longest is not None and tokens > self.longest[0]:
            most, field = self.longest
            raise UserError(
                place, f"{tokens:,} tokens", f"at most {most:,}, by {field}",
                "Raise that, or set the stage's packing.too_long to truncate or drop.",
            )  # fmt: skip

    def _refused(self, problem: BadDocumentError, place: str) -> UserError:
        expected, _ = self.job.rule(problem)  # its advice is about options of `soaes prep sft`
        fix = f"Correct it, or data.datasets.{self.name}.chat."
        return UserError(place, problem.found, expected, fix)


def _first_batch(
    file: InputFile, keys: tuple[str, ...] | None, read: Callable[[InputRange], Iterator[Batch]]
) -> tuple[InputRange, Batch]:
    for one in plan_ranges([file], keys, None)[:1]:
        for batch in read(one):
            return one, batch
    raise _empty(file)


def _empty(file: InputFile) -> UserError:
    return UserError(file.path, "no record", "at least one", "Leave the file out.")


def _refused_above(recipe: Recipe, name: str) -> Iterator[tuple[int, str]]:
    """The most tokens that fit each stage that reads the first record of a dataset and refuses
    longer ones. What is held out stands at the end, where there is also something to train on."""
    held_out_whole = not recipe.data.datasets[name].holdout
    evaluation = recipe.evaluation
    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage) and held_out_whole and name in evaluation.perplexity:
            yield evaluation.sequence_length + 1, "evaluation.sequence_length"
        if not isinstance(stage, AnyTrainingStage | CaptureStage):
            continue
        parts = graph.parts_of(recipe, stage) if isinstance(stage, SingleStage) else [stage]
        refusing = [part for part in parts if too_long_of(recipe, part) == "refuse"]
        read = {one for part in refusing for one in graph.datasets_of(recipe, part)}
        if held_out_whole and too_long_of(recipe, stage) == "refuse":
            sets = stage.validation
            read |= set(sets if isinstance(sets, list) else sets.sets)
        if name in read:
            yield stage.sequence_length + 1, f"stages.{stage.name}.sequence_length"
