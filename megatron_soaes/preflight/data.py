"""Whether the text is there, can be read, and goes with the tokenizers of the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from data_prep.ranges import InputFile, find_inputs, plan_ranges
from data_prep.readers import read_batches
from data_prep.same_tokenizer import require_same_tokenizer
from data_prep.sft.problems import RULES, RecordError
from data_prep.sft.reader import read_records
from data_prep.sft.records import Record, RecordReader
from megatron_soaes.data.conversations import open_conversations
from megatron_soaes.data.indexed import open_documents
from megatron_soaes.errors import UserError
from megatron_soaes.preflight.findings import Found
from megatron_soaes.recipe.data_settings import Chat, Dataset
from megatron_soaes.recipe.schema import DistillStage, ModelName, Recipe
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.stages.datasets import conversations, documents, reading_for

WHOLE = (0.0, 1.0)
SHORTEST = 1
"""Tokens that a given dataset must have; whether that is enough is for the recipe's lengths."""


def check_tokenizers(recipe: Recipe, shapes: Mapping[ModelName, ModelShape]) -> Found:
    """Each fits its model, and where a teacher teaches both models have the same."""
    for name, shape in shapes.items():
        source = recipe.models.get(name)
        assert source is not None
        reading = reading_for(recipe, source, shape, SHORTEST)
        yield f"{name}: ids below {shape.vocab_size:,}, tokenizer {reading.tokenizer.sha256[:12]}"
    draft = recipe.models.draft
    taught = any(isinstance(stage, DistillStage) for stage in recipe.stages)
    if draft is not None and taught:
        require_same_tokenizer(recipe.models.target.source, draft.source)
        yield "target and draft have the same tokenizer"


def check_dataset(recipe: Recipe, name: str, shape: ModelShape) -> Found:
    """One dataset: every file and its first record, or the indexed files that are given."""
    dataset = recipe.data.datasets[name]
    if dataset.responses is not None:
        yield f"written by the stage {dataset.responses}"
    elif dataset.files:
        found = find_inputs(tuple(dataset.files))
        for file in found:
            yield from _first_record(file, dataset, name)
        size = sum(file.size for file in found)
        yield f"{len(found)} files, {size / 1e9:,.2f} GB; the first record of each can be read"
    else:
        reading = reading_for(recipe, recipe.models.target, shape, SHORTEST)
        if dataset.is_chat:
            tokens, _ = open_conversations(conversations(recipe, name, WHOLE), reading.tokenizer)
            count = len(tokens)
        else:
            _, indices = open_documents(documents(recipe, name, WHOLE), reading.windows())
            count = len(indices)
        yield f"{count:,} indexed records, with this tokenizer"


def _first_record(file: InputFile, dataset: Dataset, name: str) -> Iterator[UserError]:
    """What is wrong with the first record, if anything."""
    keys = None if dataset.is_chat else (dataset.key,)
    first = plan_ranges([file], keys, None)[:1]
    if dataset.is_chat:
        records = next((batch for one in first for batch in read_records(one)), None)
        bad = records.bad if records else []
        values = [record.value for record in records.records] if records else []
        if values and not (bad and bad[0][0] == 1):
            yield from _not_in_order(file, dataset.chat, values[0], name)
            return
    else:
        texts = next((batch for one in first for batch in read_batches(one, (dataset.key,))), None)
        bad = texts.bad if texts else []
        if texts and texts.texts[dataset.key] and not (bad and bad[0][0] == 1):
            return
    if bad:
        number, problem = bad[0]
        expected, fix = "a record of this dataset", "Repair it, or the recipe's words for it."
        yield UserError(f"{file.path}:{number}", problem.found, expected, fix)
    else:
        yield UserError(file.path, "no record", "at least one", "Leave the file out.")


def _not_in_order(file: InputFile, chat: Chat, record: Record, name: str) -> Iterator[UserError]:
    # Whether the chat template writes tool turns is known when it is compiled, which comes later.
    reader = RecordReader(
        chat.format, chat.system, chat.weight_key, chat.source_key, name, tool_role=True
    )
    try:
        reader.read(record)
    except RecordError as error:
        yield UserError(f"{file.path}:1", error.found, *RULES[error.problem])
