"""The recipe's datasets as the data room takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_prep.tokenizer import load_tokenizer
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.data_settings import Packing
from megatron_soaes.recipe.schema import ModelSource, Recipe
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.stages.locations import indexed_files, indexed_prefix

if TYPE_CHECKING:
    from megatron_soaes.data.conversations import ConversationRange, Packs, PackSettings
    from megatron_soaes.data.indexed import DocumentRange, TokenizerFacts, WindowSettings
    from megatron_soaes.data.sample import SampleSource

TooLong = Literal["refuse", "truncate", "drop"]


@dataclass(frozen=True)
class Reading:
    """How one stage reads datasets: its recipe, its tokenizer and the length of its samples."""

    recipe: Recipe
    tokenizer: TokenizerFacts
    sequence_length: int

    @property
    def cache(self) -> Path:
        """Folder of the indexes, shared by all stages of a run."""
        return self.recipe.workdir / "index-cache"

    def source_id(self, name: str) -> int:
        """A dataset's number, the same in every stage."""
        return list(self.recipe.data.datasets).index(name)

    def windows(self) -> WindowSettings:
        """How documents are cut."""
        from megatron_soaes.data.indexed import WindowSettings

        return WindowSettings(self.sequence_length, self.recipe.seed, self.tokenizer, self.cache)

    def packs(self, packing: Packing) -> PackSettings:
        """How conversations are packed."""
        from megatron_soaes.data.conversations import PackSettings

        return PackSettings(
            self.sequence_length,
            self.recipe.seed,
            self.tokenizer,
            self.cache,
            packing.order,
            packing.too_long,
        )


def reading_for(
    recipe: Recipe, source: ModelSource, shape: ModelShape, sequence_length: int
) -> Reading:
    """How a stage of this model reads; UserError for a tokenizer that does not fit the model."""
    from megatron_soaes.data.indexed import TokenizerFacts

    info, _ = load_tokenizer(source.source, add_special_tokens=False)
    if info.eod_id is None:
        raise UserError(
            source.source / "tokenizer_config.json", "no eos_token",
            "the token that ends documents", "Add eos_token to that file.",
        )  # fmt: skip
    if info.largest_id >= shape.vocab_size:
        raise UserError(
            info.path, f"token id {info.largest_id}", f"ids below vocab_size {shape.vocab_size}",
            "Use the tokenizer that belongs to this model.",
        )  # fmt: skip
    facts = TokenizerFacts(shape.vocab_size, info.eod_id, info.sha256)
    return Reading(recipe, facts, sequence_length)


def data_inputs(recipe: Recipe, names: list[str]) -> dict[str, Path]:
    """The files of the named datasets, for a plan."""
    return {
        f"data/{file}": path for name in names for file, path in indexed_files(recipe, name).items()
    }


def data_config(recipe: Recipe, names: list[str]) -> dict[str, Any]:
    """What of the datasets' settings decides which tokens are read."""
    return {name: {"holdout": recipe.data.datasets[name].holdout} for name in names}


def training_part(recipe: Recipe, name: str) -> tuple[float, float]:
    """The share of a dataset that is trained on: all but its end, if that is held out."""
    return 0.0, 1.0 - recipe.data.datasets[name].holdout


def documents(recipe: Recipe, name: str, part: tuple[float, float]) -> DocumentRange:
    """A part of a dataset of documents."""
    from megatron_soaes.data.indexed import DocumentRange

    return DocumentRange(name, indexed_prefix(recipe, name), *part)


def conversations(recipe: Recipe, name: str, part: tuple[float, float]) -> ConversationRange:
    """A part of a dataset of conversations."""
    from megatron_soaes.data.conversations import ConversationRange

    return ConversationRange(name, indexed_prefix(recipe, name), *part)


def held_out_sets(reading: Reading, names: list[str], too_long: TooLong) -> dict[str, SampleSource]:
    """The held-out share of each named dataset; the whole of one that is never trained on.

    Conversations of several sources are there once more source by source, as `NAME/SOURCE`.
    """
    from megatron_soaes.data.indexed import Windows

    found: dict[str, SampleSource] = {}
    for name in names:
        dataset = reading.recipe.data.datasets[name]
        part = (1.0 - dataset.holdout if dataset.holdout else 0.0, 1.0)
        if dataset.is_chat:
            found |= _held_out_packs(reading, name, part, too_long)
        else:
            chosen = documents(reading.recipe, name, part)
            found[name] = Windows(chosen, None, reading.windows(), reading.source_id(name))
    return found


def _held_out_packs(
    reading: Reading, name: str, part: tuple[float, float], too_long: TooLong
) -> dict[str, Packs]:
    from megatron_soaes.data.conversations import Packs, sources_of

    settings = reading.packs(Packing(order="as_given", too_long=too_long))
    whole = conversations(reading.recipe, name, part)
    number = reading.source_id(name)
    found = {name: Packs(whole, settings, number)}
    sources = sources_of(whole)
    if len(sources) > 1:
        for source in sources:
            chosen = replace(whole, source=source)
            found[f"{name}/{source}"] = Packs(chosen, settings, number)
    return found
