"""The recipe's datasets as the data room takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.tokenizer import load_tokenizer
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.schema import ModelSource, Recipe, TrainingStage
from megatron_soaes.stages.locations import indexed_files, indexed_prefix

if TYPE_CHECKING:
    from megatron_soaes.data.blend import TrainingBlend
    from megatron_soaes.data.indexed import DocumentRange, Windows, WindowSettings


def data_inputs(recipe: Recipe, names: list[str]) -> dict[str, Path]:
    """The files of the named datasets, for a plan."""
    return {
        f"data/{file}": path for name in names for file, path in indexed_files(recipe, name).items()
    }


def data_config(recipe: Recipe, names: list[str]) -> dict[str, Any]:
    """What of the datasets' settings decides which tokens are read."""
    return {name: {"holdout": recipe.data.datasets[name].holdout} for name in names}


def window_settings(
    recipe: Recipe, source: ModelSource, sequence_length: int, vocab_size: int
) -> WindowSettings:
    """How documents are cut for this model; the indexes are kept under the run's folder."""
    from megatron_soaes.data.indexed import TokenizerFacts, WindowSettings

    info, _ = load_tokenizer(source.source, add_special_tokens=False)
    if info.eod_id is None:
        raise UserError(
            source.source / "tokenizer_config.json", "no eos_token",
            "the token that ends documents", "Add eos_token to that file.",
        )  # fmt: skip
    if info.largest_id >= vocab_size:
        raise UserError(
            info.path, f"token id {info.largest_id}", f"ids below vocab_size {vocab_size}",
            "Use the tokenizer that belongs to this model.",
        )  # fmt: skip
    return WindowSettings(
        sequence_length=sequence_length,
        seed=recipe.seed,
        tokenizer=TokenizerFacts(vocab_size, info.eod_id, info.sha256),
        cache=recipe.workdir / "index-cache",
    )


def training_documents(recipe: Recipe) -> dict[str, DocumentRange]:
    """Every dataset without its held-out share."""
    from megatron_soaes.data.indexed import DocumentRange

    return {
        name: DocumentRange(name, indexed_prefix(recipe, name), 0.0, 1.0 - dataset.holdout)
        for name, dataset in recipe.data.datasets.items()
    }


def training_blend(recipe: Recipe, stage: TrainingStage, settings: WindowSettings) -> TrainingBlend:
    """What a stage trains on, in order."""
    from megatron_soaes.data.blend import TrainingBlend

    return TrainingBlend(
        training_documents(recipe),
        recipe.data.blends[stage.blend].shares(),
        stage.steps * stage.global_batch_size,
        settings,
    )


def held_out_windows(
    recipe: Recipe, names: list[str], settings: WindowSettings
) -> dict[str, Windows]:
    """The held-out share of each named dataset; the whole of one that is never trained on."""
    from megatron_soaes.data.indexed import DocumentRange, Windows

    windows = {}
    for name in names:
        holdout = recipe.data.datasets[name].holdout
        first = 1.0 - holdout if holdout else 0.0
        documents = DocumentRange(name, indexed_prefix(recipe, name), first, 1.0)
        windows[name] = Windows(documents, None, settings, list(recipe.data.datasets).index(name))
    return windows
