"""Where the graph's intermediate results lie."""

from __future__ import annotations

from pathlib import Path

from megatron_soaes.recipe.graph import IMPORT, import_node, preprocess_node
from megatron_soaes.recipe.schema import ModelName, Recipe


def indexed_prefix(recipe: Recipe, dataset: str) -> Path:
    """Path without .bin/.idx of a dataset's tokens: made by its preprocessing, or given."""
    wanted = recipe.data.datasets[dataset]
    if wanted.indexed is not None:
        return wanted.indexed
    return preprocess_prefix(recipe, dataset).with_name(f"{dataset}_{wanted.key}_document")


def preprocess_prefix(recipe: Recipe, dataset: str) -> Path:
    """The output prefix given to preprocessing."""
    return recipe.workdir / preprocess_node(dataset) / dataset


def indexed_files(recipe: Recipe, dataset: str) -> dict[str, Path]:
    """The two files of a dataset's tokens, by names for a plan."""
    prefix = indexed_prefix(recipe, dataset)
    return {
        f"{dataset}{suffix}": prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx")
    }


def checkpoint_root(recipe: Recipe, stage: str, model: ModelName) -> Path:
    """Checkpoints of a training stage, or of the imported model under the name `import`."""
    folder = import_node(model) if stage == IMPORT else stage
    return recipe.workdir / folder / "checkpoints"
