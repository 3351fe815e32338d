"""Check a recipe where it is written: everything that needs neither its cluster nor a GPU."""

from __future__ import annotations

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.check_arithmetic import check_arithmetic
from megatron_soaes.recipe.check_cluster import check_cluster
from megatron_soaes.recipe.problems import Problem, RecipeErrors
from megatron_soaes.recipe.schema import ModelName, Recipe
from megatron_soaes.recipe.shapes import ModelShape, read_shape


def shapes_of(recipe: Recipe) -> tuple[dict[ModelName, ModelShape], list[Problem]]:
    """The shape of each declared model from its config.json, and what is wrong with those files."""
    shapes: dict[ModelName, ModelShape] = {}
    problems: list[Problem] = []
    names: tuple[ModelName, ...] = ("target", "draft")
    for name in names:
        model = recipe.models.get(name)
        if model is None:
            continue
        try:
            shapes[name] = read_shape(model.config or model.source / "config.json")
        except UserError as error:
            path = f"models.{name}.{'config' if model.config else 'source'}"
            found = f"{error.found} in {error.where}"
            problems.append(Problem(path, found, error.expected, error.fix))
    return shapes, problems


def check(recipe: Recipe) -> dict[ModelName, ModelShape]:
    """Check the recipe's arithmetic and its declared cluster; the models' shapes when it is sound.

    Raises RecipeErrors with every broken rule.
    """
    shapes, problems = shapes_of(recipe)
    problems += check_arithmetic(recipe, shapes) + check_cluster(recipe)
    if problems:
        raise RecipeErrors(f"recipe '{recipe.name}'", problems)
    return shapes
