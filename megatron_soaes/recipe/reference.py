"""The recipe reference, written from the schema, and a recipe with every default written out.

`python -m megatron_soaes.recipe.reference > docs/recipe-reference.md` renews the reference.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from megatron_soaes import yaml_text
from megatron_soaes.recipe.fields import is_stage_list, section_of, stage_kinds
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.schema import Recipe, Stage, TrainingStage
from megatron_soaes.recipe.section import Section

PLAIN_TYPES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    date: "date",
}

INTRODUCTION = """\
# Recipe reference

Every field of a recipe file. This page is written from the schema; renew it with
`python -m megatron_soaes.recipe.reference > docs/recipe-reference.md`.

A recipe is YAML. Unknown fields and keys given twice are errors. Relative paths start at the
folder of the recipe file, `~` is the home folder. A number in quotes is text; `1e-5` is a number.
A name is a letter, then letters, digits, `-` or `_`.

On the command line any field can be set as `path=value`: `stages.cpt.optimizer.lr=1e-5`, where a
stage is addressed by its name. Steps of a path may be left out as long as one field fits:
`cpt.lr=1e-5`. The value is YAML (`cpt.gates=[]`, `cluster=null`).
"""


def show(recipe: Recipe) -> str:
    """The resolved recipe as YAML with every default; `load_recipe` reads the same recipe back."""
    return yaml_text.dump(recipe.model_dump(mode="json"))


def recipe_reference() -> str:
    """Markdown: a table for each section of the schema, and the GPU kinds."""
    parts = [INTRODUCTION]
    parts += [_section(path, section) for path, section in _sections(Recipe, "")]
    return "\n".join([*parts, _gpus()])


def _sections(section: type[Section], path: str) -> Iterator[tuple[str, type[Section]]]:
    """Each section below `section` with the first path that leads to it, in order of the file."""
    seen: set[type[Section]] = set()

    def walk(section: type[Section], path: str) -> Iterator[tuple[str, type[Section]]]:
        if section in seen:
            return
        seen.add(section)
        yield path, section
        for name, field in _own_fields(section).items():
            below = f"{path}.{name}".removeprefix(".")
            if is_stage_list(field.annotation):
                kinds: list[type[Section]] = [Stage, TrainingStage, *stage_kinds().values()]
                for kind in kinds:
                    yield from walk(kind, f"{below}.<name>")
            elif get_origin(field.annotation) is dict:
                inner = section_of(get_args(field.annotation)[1])
                if inner:
                    yield from walk(inner, f"{below}.<name>")
            elif inner := section_of(field.annotation):
                yield from walk(inner, below)

    return walk(section, path)


def _parent(section: type[Section]) -> type[Section] | None:
    """The kind of stage that this one extends."""
    base = section.__mro__[1]
    return base if issubclass(base, Stage) else None


def _own_fields(section: type[Section]) -> dict[str, FieldInfo]:
    parent = _parent(section)
    inherited = parent.model_fields if parent else {}
    return {name: field for name, field in section.model_fields.items() if name not in inherited}


def _section(path: str, section: type[Section]) -> str:
    lines = [f"## {_title(path, section)}", "", inspect.getdoc(section) or "", ""]
    parent = _parent(section)
    if parent:
        lines += [f"Also has the fields of [{_heading(parent)}](#{_anchor(parent)}).", ""]
    lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in _own_fields(section).items():
        kind = _type(field.annotation, field.metadata)
        meaning = field.description or "Makes it a stage of this kind."
        cells = (f"`{name}`", kind, _default(field), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _heading(section: type[Section]) -> str:
    if section in (Stage, TrainingStage):
        return "Every stage" if section is Stage else "Every training stage"
    kinds = [kind for kind, stage in stage_kinds().items() if stage is section]
    return f"Stage kind {kinds[0]}" if kinds else section.__name__


def _anchor(section: type[Section]) -> str:
    return _heading(section).lower().replace(" ", "-")


def _title(path: str, section: type[Section]) -> str:
    return _heading(section) if issubclass(section, Stage) or not path else f"`{path}`"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, Section):
        return "the section's defaults"
    text: str = yaml_text.dump_flow(value)
    return f"`{text}`"


def _type(annotation: Any, metadata: list[Any]) -> str:
    """The type of a field as one reads it: `integer, at least 1`."""
    if any(getattr(item, "pattern", None) for item in metadata):
        return "name"
    return ", ".join([_plain_type(annotation), *_bounds(metadata)])


def _plain_type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        text = _type(arguments[0], [m for a in arguments[1:] for m in _constraints(a)])
    elif origin in (Union, types.UnionType):
        members = [member for member in arguments if member is not type(None)]
        text = " or ".join(_plain_type(member) for member in members)
    elif origin is Literal:
        text = ", ".join(f"`{yaml_text.dump_flow(value)}`" for value in arguments)
    elif is_stage_list(annotation):
        text = "list of stages"
    elif origin in (list, tuple):
        text = f"{'list' if origin is list else 'pair'} of {_plain_type(arguments[0])}"
    elif origin is dict:
        text = f"{_plain_type(arguments[0])} to {_plain_type(arguments[1])}"
    elif section_of(annotation):
        text = "section"
    else:
        text = PLAIN_TYPES[annotation]
    return text


def _constraints(annotated: Any) -> list[Any]:
    return annotated.metadata if isinstance(annotated, FieldInfo) else [annotated]


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for item in metadata:
        match item:
            case annotated_types.Gt(gt=0):
                yield "above 0"
            case annotated_types.Ge(ge=bound):
                yield f"at least {bound}"
            case annotated_types.Lt(lt=bound):
                yield f"below {bound}"
            case annotated_types.Le(le=bound):
                yield f"at most {bound}"
            case annotated_types.MinLen(min_length=length):
                yield f"{length} or more"


def _gpus() -> str:
    lines = [
        "## GPU kinds",
        "",
        "What `cluster.gpu` may name. Memory is what a process finds, without what ECC and the "
        "driver keep; rates are dense datasheet figures in TFLOP/s.",
        "",
        "| kind | generation | memory (GiB) | bf16 | FP8 | FP8 recipes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, gpu in GPUS.items():
        fp8 = f"{gpu.fp8_tflops:g}" if gpu.fp8_tflops else "none"
        recipes = ", ".join(gpu.fp8_recipes) or "none"
        cells = (f"`{kind}`", gpu.generation, str(gpu.memory_gib), f"{gpu.bf16_tflops:g}", fp8)
        lines.append("| " + " | ".join((*cells, recipes)) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(recipe_reference())
