"""A recipe file becomes a `Recipe`, or one error that lists everything wrong with its form."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from megatron_soaes import yaml_text
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.data_settings import Dataset
from megatron_soaes.recipe.fields import field_at, stage_kinds
from megatron_soaes.recipe.overrides import apply_overrides
from megatron_soaes.recipe.problems import Problem, RecipeErrors, did_you_mean
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.recipe.section import Section
from megatron_soaes.wording import unreadable

VALUE_WIDTH = 60
"""Characters of a wrong value that an error shows."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the YAML file `path`, apply `overrides` and check every type; rules are `check`'s.

    Relative paths and globs, those of overrides too, start at the folder of `path`; `~` is the home
    folder. Values are what YAML says they are: a number in quotes is text. Raises UserError for a
    file that cannot be read, is not YAML or has a key twice (file and line), and for an override
    that fits no field; RecipeErrors with every wrong, missing or unknown field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            path, unreadable(error), "a recipe in YAML", "Give the path of a recipe."
        ) from None
    data = yaml_text.parse(text, path)
    if not isinstance(data, dict):
        found = "an empty file" if data is None else f"a {type(data).__name__}"
        raise UserError(path, found, "fields with values", "See docs/recipe-reference.md.")
    recipe = _validate(apply_overrides(data, overrides), path)
    resolved: Recipe = _resolve_paths(recipe, path.resolve().parent)
    return resolved


def _validate(data: dict[str, Any], path: Path) -> Recipe:
    try:
        # Strict JSON takes values as they are; strict Python objects would refuse text as a path.
        return Recipe.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as errors:
        raise RecipeErrors(path, [_problem(error, data) for error in errors.errors()]) from None


def _problem(error: ErrorDetails, data: dict[str, Any]) -> Problem:
    loc = error["loc"]
    path = _path(loc, data)
    section, field = field_at(loc)
    value = json.dumps(error["input"], ensure_ascii=False)
    if len(value) > VALUE_WIDTH:
        value = value[:VALUE_WIDTH] + "..."
    meaning = field.description if field and field.description else "See docs/recipe-reference.md."
    rule = error["msg"].removeprefix("Input should be ")
    fix = f"Correct the value. {meaning}"
    match error["type"]:
        case "extra_forbidden":
            value, rule = "an unknown field", "a field of this section"
            known = section.model_fields if section else {}
            fix = f"{did_you_mean(str(loc[-1]), known)} Otherwise remove the field."
        case "missing":
            value, rule, fix = "nothing", "a value", f"Add it. {meaning}"
        case "union_tag_invalid" | "union_tag_not_found":
            path, value = f"{path}.kind", str(error.get("ctx", {}).get("tag", "nothing"))
            rule, fix = f"one of {', '.join(stage_kinds())}", did_you_mean(value, stage_kinds())
        case "string_pattern_mismatch":
            rule = "a letter, then letters, digits, '-' or '_'"
            fix = "Choose a name of that form."
        case "string_type" if isinstance(error["input"], int | float):
            rule, fix = "text", "Put it in quotes, as it was written: YAML reads it as a number."
        case "literal_error":
            rule = error["ctx"]["expected"]
            options = [option.strip("'") for option in rule.replace(" or ", ", ").split(", ")]
            fix = f"{did_you_mean(str(error['input']), options)} {meaning}"
    return Problem(path, value, rule, fix)


def _path(loc: tuple[int | str, ...], data: dict[str, Any]) -> str:
    """A pydantic error location as an override writes it; a stage without a name by its index."""
    steps = [step for step in loc if step != "[key]"]
    if len(steps) < 2 or steps[0] != "stages" or not isinstance(steps[1], int):
        return _join(steps)
    stage = data["stages"][steps[1]]
    name = stage.get("name") if isinstance(stage, dict) else None
    head = ["stages", name] if isinstance(name, str) else steps[:2]
    # A location goes on with the tag of the stage's kind, which is no field.
    return _join([*head, *steps[3:]])


def _join(steps: Sequence[int | str]) -> str:
    path = ""
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.removeprefix(".") or "recipe"


def _resolve_paths(value: Any, folder: Path) -> Any:
    """`value` with every path in it absolute."""
    if isinstance(value, Path):
        return Path(os.path.normpath(folder / value.expanduser()))
    if isinstance(value, list | tuple):
        return type(value)(_resolve_paths(item, folder) for item in value)
    if isinstance(value, dict):
        return {key: _resolve_paths(item, folder) for key, item in value.items()}
    if isinstance(value, Section):
        update = {
            name: _resolve_paths(getattr(value, name), folder) for name in value.model_fields_set
        }
        if isinstance(value, Dataset):
            for field in ("text", "conversations"):
                patterns = getattr(value, field)
                update[field] = [
                    os.path.normpath(folder / Path(pattern).expanduser()) for pattern in patterns
                ]
        return value.model_copy(update=update)
    return value
