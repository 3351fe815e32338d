"""Where the graph's intermediate results lie."""

from __future__ import annotations

from pathlib import Path

from megatron_soaes.recipe.graph import IMPORT, import_node, preprocess_node, stage_of
from megatron_soaes.recipe.schema import ModelName, Recipe


def indexed_prefix(recipe: Recipe, dataset: str) -> Path:
    """Path without suffix of a dataset's tokens: made by its preprocessing, or given."""
    wanted = recipe.data.datasets[dataset]
    if wanted.responses is not None:
        return responses_prefix(recipe, wanted.responses)
    given = wanted.indexed or wanted.indexed_conversations
    if given is not None:
        return given
    made = preprocess_prefix(recipe, dataset)
    return made if wanted.is_chat else made.with_name(f"{dataset}_{wanted.key}_document")


def responses_prefix(recipe: Recipe, stage: str) -> Path:
    """The prefix of the dataset that a respond stage writes."""
    return recipe.workdir / stage / "responses"


def exported_hf(recipe: Recipe, stage: str) -> Path:
    """The HF directory that an export stage writes."""
    return recipe.workdir / stage / "hf"


def capture_store(recipe: Recipe, stage: str, validation: str | None = None) -> Path:
    """The store that a capture stage writes, or that of one of its validation sets."""
    folder = recipe.workdir / stage
    return folder / "validation" / validation if validation else folder / "store"


def preprocess_prefix(recipe: Recipe, dataset: str) -> Path:
    """The output prefix given to preprocessing."""
    return recipe.workdir / preprocess_node(dataset) / dataset


def indexed_files(recipe: Recipe, dataset: str) -> dict[str, Path]:
    """The files of a dataset's tokens, by names for a plan."""
    prefix = indexed_prefix(recipe, dataset)
    suffixes: tuple[str, ...] = (".bin", ".idx")
    if recipe.data.datasets[dataset].is_chat:
        suffixes += ("_weights.bin", "_weights.idx", "_sources.npy", ".json")
    return {f"{dataset}{suffix}": prefix.with_name(prefix.name + suffix) for suffix in suffixes}


def checkpoint_root(recipe: Recipe, checkpoint: str, model: ModelName) -> Path:
    """Checkpoints of the training stage, or of the imported model, that a name speaks of."""
    stage = stage_of(checkpoint)
    folder = import_node(model) if stage == IMPORT else stage
    return recipe.workdir / folder / "checkpoints"
