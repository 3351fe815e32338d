"""Overrides from the command line: `cpt.lr=1e-5` is the same as editing the recipe file."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from typing import Any

from megatron_soaes import yaml_text
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.fields import paths
from megatron_soaes.recipe.schema import Recipe

FieldPath = tuple[str, ...]


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the recipe file content `data` with each `path=value` set, in the order given.

    A path names fields from the top, stages by their name (`stages.cpt.optimizer.lr`, or
    `cpt.optimizer.lr`). It may leave out steps as long as one field fits (`cpt.lr`). The value is
    YAML. Raises UserError for a path that fits no field or several.
    """
    data = copy.deepcopy(data)
    for override in overrides:
        where = f"override {override!r}"
        text, equals, value = override.partition("=")
        if not equals:
            raise UserError(where, "no '='", "path=value", "Write it like cpt.lr=1e-5.")
        path = _resolve(text.strip(), data, where)
        _assign(data, path, yaml_text.parse(value, where), where)
    return data


def _resolve(text: str, data: dict[str, Any], where: str) -> FieldPath:
    wanted = tuple(text.split("."))
    known: list[FieldPath] = list(paths(Recipe, data))
    exact = [path for path in known if path in (wanted, ("stages", *wanted))]
    matches = exact or [path for path in known if _is_shorthand(wanted, path)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        fields = ", ".join(".".join(path) for path in matches[:12])
        fix = f"Give more of the path; candidates: {fields}."
        raise UserError(where, f"{len(matches)} fields called {text}", "one field", fix)
    near = _near(wanted, known)
    fix = f"Did you mean {' or '.join(near)}?" if near else "See docs/recipe-reference.md."
    raise UserError(where, f"no field {text} in this recipe", "a field of the recipe", fix)


def _is_shorthand(wanted: FieldPath, path: FieldPath) -> bool:
    """Whether `wanted` is `path` with steps left out before the last."""
    return wanted[-1] == path[-1] and _in_order(wanted, path)


def _in_order(wanted: FieldPath, path: FieldPath) -> bool:
    steps = iter(path)
    return all(step in steps for step in wanted)


def _near(wanted: FieldPath, known: list[FieldPath]) -> list[str]:
    """Up to three paths that look like `wanted`: below its first steps, otherwise anywhere."""
    text = ".".join(wanted)
    below = [path for path in known if _in_order(wanted[:-1], path[:-1])]
    for candidates in (below, known):
        leaves = difflib.get_close_matches(wanted[-1], {path[-1] for path in candidates}, n=3)
        options = [".".join(path) for path in candidates if path[-1] in leaves]
        if options:
            return difflib.get_close_matches(text, options, n=3, cutoff=0)
    return difflib.get_close_matches(text, [".".join(path) for path in known], n=3)


def _assign(data: dict[str, Any], path: FieldPath, value: object, where: str) -> None:
    section: Any = data
    for depth, step in enumerate(path[:-1]):
        if isinstance(section, list):
            section = next(item for item in section if item.get("name") == step)
            continue
        if section.get(step) is None:
            section[step] = {}
        section = section[step]
        if not isinstance(section, dict | list):
            found = f"{section!r} in {'.'.join(path[: depth + 1])}"
            raise UserError(where, found, "a section", "Correct it in the recipe file first.")
    if isinstance(section, list):
        index = next(i for i, item in enumerate(section) if item.get("name") == path[-1])
        section[index] = value
    else:
        section[path[-1]] = value
