"""YAML files read into typed settings, every mistake named by file, line and field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from megatron_soaes import yaml_text
from megatron_soaes.errors import UserError
from megatron_soaes.wording import unreadable

Model = TypeVar("Model", bound=BaseModel)
Location = Sequence[int | str]
"""Keys and indices from the top of a file to a value."""

VALUE_WIDTH = 60
"""Characters of a wrong value that an error shows."""


def read_strict(path: Path, model: type[Model]) -> Model:
    """The settings in a YAML file; values are what YAML says they are.

    Raises UserError for a file that cannot be read, is no YAML or has a key twice (file and line),
    and for wrong, missing or unknown fields: all of them, each with its line and what was found.
    The model says itself whether unknown fields are errors (`extra="forbid"`).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, unreadable(error), "a YAML file", "Correct the path.") from None
    data = yaml_text.parse(text, path)
    if not isinstance(data, dict):
        found = "an empty file" if data is None else f"a {type(data).__name__}"
        raise UserError(path, found, "fields with values", "Write fields as NAME: VALUE.")
    try:
        # Strict JSON takes values as they are; strict Python objects would refuse text as a path.
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as errors:
        raise _wrong_fields(path, text, errors) from None


def refuse(location: Location, value: object, rule: str) -> NoReturn:
    """For a model's validator: `value` at `location` below the model breaks `rule`.

    Raises the ValidationError that `read_strict` turns into the line and field of that value.
    """
    # Braces would be places for values to pydantic.
    kind = PydanticCustomError("rule", "{rule}", {"rule": rule})
    details = InitErrorDetails(type=kind, loc=tuple(location), input=value)
    raise ValidationError.from_exception_data("settings", [details])


def _wrong_fields(path: Path, text: str, errors: ValidationError) -> UserError:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    details = errors.errors()
    lines = [_line(root, error["loc"]) for error in details]
    first, *others = sorted(zip(lines, map(_told, details), strict=True))
    found = "; ".join([first[1], *(f"line {line}, {told}" for line, told in others)])
    return UserError(
        f"{path}:{first[0]}", found, "fields of their names and types", "Correct these fields."
    )


def _told(error: ErrorDetails) -> str:
    """A problem in words: the field, its value and the rule."""
    field = _field(error["loc"])
    match error["type"]:
        case "missing":
            return f"{field}: nothing (a required field)"
        case "extra_forbidden":
            return f"{field}: an unknown field"
    value = json.dumps(error["input"], ensure_ascii=False, default=str)
    if len(value) > VALUE_WIDTH:
        value = value[:VALUE_WIDTH] + "..."
    rule = error["msg"].removeprefix("Value error, ")
    return f"{field}: {value} ({rule[:1].lower()}{rule[1:]})"


def _field(location: Location) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).removeprefix(".") or "the file"


def _line(node: yaml.Node | None, location: Location) -> int:
    """The line of a value, counted from 1; of what encloses it where it does not stand itself."""
    line = 1
    for step in location:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            entry = next((pair for pair in node.value if pair[0].value == step), None)
            # A location may also hold the tag of a union, which stands nowhere in the file.
            if entry:
                line = entry[0].start_mark.line + 1
                node = entry[1]
    return line
