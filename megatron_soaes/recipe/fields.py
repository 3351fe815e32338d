"""The schema seen as a tree of paths: shared by overrides, error messages and the reference."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from megatron_soaes.recipe.schema import AnyStage, Recipe, Stage
from megatron_soaes.recipe.section import Section


def bare(annotation: Any) -> Any:
    """`annotation` without `Annotated` and without `| None`."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return bare(members[0]) if len(members) == 1 else annotation
    return annotation


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field of this annotation holds, None for a plain value."""
    inner = bare(annotation)
    return inner if isinstance(inner, type) and issubclass(inner, Section) else None


def stage_kinds() -> dict[str, type[Stage]]:
    """Every kind of stage and its section."""
    classes = get_args(bare(AnyStage))
    return {get_args(cls.model_fields["kind"].annotation)[0]: cls for cls in classes}


def is_stage_list(annotation: Any) -> bool:
    """Whether a field holds the list of stages, which paths address by name."""
    return get_origin(annotation) is list and bare(get_args(annotation)[0]) == bare(AnyStage)


def field_at(loc: tuple[int | str, ...]) -> tuple[type[Section] | None, FieldInfo | None]:
    """The section that holds a pydantic error location, and the field it is in.

    Either is None when the location names no field of the schema.
    """
    section: type[Section] | None = None
    field: FieldInfo | None = None
    annotation: Any = Recipe
    for part in loc:
        inner = section_of(annotation)
        if inner is not None:
            section, field = inner, inner.model_fields.get(str(part))
            annotation = field.annotation if field else None
        elif bare(annotation) == bare(AnyStage):
            annotation = stage_kinds().get(str(part))
        else:
            arguments = get_args(bare(annotation))
            annotation = arguments[-1] if arguments else None
    return section, field


def paths(
    section: type[Section], data: object, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Every path that an override of the recipe file content `data` can name, as tuples of names.

    Sections that the file leaves out are included; named entries (datasets, blends, stages) are
    those that the file has.
    """
    content: Mapping[str, object] = data if isinstance(data, Mapping) else {}
    for name, field in section.model_fields.items():
        yield (*above, name)
        yield from _paths_below(field.annotation, content.get(name), (*above, name))


def _paths_below(
    annotation: Any, data: object, above: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    inner = section_of(annotation)
    if inner is not None:
        yield from paths(inner, data, above)
    elif get_origin(annotation) is dict and isinstance(data, Mapping):
        for name, value in data.items():
            yield (*above, name)
            yield from _paths_below(get_args(annotation)[1], value, (*above, name))
    elif is_stage_list(annotation) and isinstance(data, list):
        for stage in data:
            if isinstance(stage, Mapping) and isinstance(stage.get("name"), str):
                path = (*above, stage["name"])
                yield path
                yield from paths(stage_kinds().get(str(stage.get("kind")), Stage), stage, path)
