"""Layouts in small: every kind of parallelism that a layout has, at its least degree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from megatron_soaes.recipe.training_settings import Layout

DIMENSIONS = ("tensor_parallel", "pipeline_parallel", "context_parallel", "data_parallel")
DEGREE = 2
"""Of every dimension that is more than 1."""
MOST_DIMENSIONS = 3
"""At once: 2 x 2 x 2 = 8 processes."""
LAYERS = 2
"""Of a model without pipeline stages."""


def used_dimensions(layout: Layout) -> tuple[str, ...]:
    """The dimensions in which a layout is split."""
    return tuple(name for name in DIMENSIONS if getattr(layout, name) > 1)


def layers_for(layouts: Iterable[Layout]) -> int:
    """Layers that every one of these layouts, made small, can cut."""
    cut = [one for one in layouts if one.pipeline_parallel > 1]
    if not cut:
        return LAYERS
    virtual = any(one.virtual_pipeline > 1 for one in cut)
    uneven = any(one.first_stage_layers or one.last_stage_layers for one in cut)
    # Two stages; of two chunks each where they are virtual, and room for one stage to have more.
    return DEGREE * DEGREE * (2 if virtual and uneven else 1)


def small_values(layout: Layout, layers: int, small_layers: int) -> dict[str, Any]:
    """What of a layout becomes small, for a model whose `layers` become `small_layers`.

    Degrees above 1 become 2. An uneven cut stays uneven the same way round: an end that had fewer
    layers than its share, or than the other end, has fewer.
    """
    return {
        **dict.fromkeys(used_dimensions(layout), DEGREE),
        **({"virtual_pipeline": DEGREE} if layout.virtual_pipeline > 1 else {}),
        **_ends(layout, layers, small_layers),
    }


def _ends(layout: Layout, layers: int, small_layers: int) -> dict[str, int | None]:
    """Of two stages the layers of one say those of the other: only one end is given."""
    first, last = layout.first_stage_layers, layout.last_stage_layers
    few = DEGREE if layout.virtual_pipeline > 1 else 1
    share = layers / layout.pipeline_parallel
    if first and last:
        if first == last:
            return {"first_stage_layers": small_layers // DEGREE, "last_stage_layers": None}
        small_first = few if first < last else small_layers - few
        return {"first_stage_layers": small_first, "last_stage_layers": None}
    if first:
        return {"first_stage_layers": small_layers - few if first > share else few}
    return {"last_stage_layers": small_layers - few if last > share else few} if last else {}


def pair_cover(dimensions: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Choices of at most `most` dimensions (2 or more) of which every pair is in one at least.

    All at once where that is allowed. Greedy: each choice takes the most pairs that are left.
    """
    if len(dimensions) <= most:
        return [tuple(dimensions)]
    left = set(combinations(dimensions, 2))
    chosen: list[tuple[str, ...]] = []
    while left:
        best = max(
            combinations(dimensions, most),
            key=lambda choice: len(left.intersection(combinations(choice, 2))),
        )
        left -= set(combinations(best, 2))
        chosen.append(best)
    return chosen


def only(layout: Layout, dimensions: Sequence[str]) -> Layout:
    """The layout with the other dimensions at 1, and without what only goes with them."""
    wanted: dict[str, Any] = {name: 1 for name in DIMENSIONS if name not in dimensions}
    if "tensor_parallel" not in dimensions:
        wanted["sequence_parallel"] = False
    if "pipeline_parallel" not in dimensions:
        wanted |= {"virtual_pipeline": 1, "first_stage_layers": None, "last_stage_layers": None}
    changed = {name: value for name, value in wanted.items() if getattr(layout, name) != value}
    return layout.model_copy(update=changed)


def layout_text(layout: Layout) -> str:
    """A layout as people write it: `TP2+SP x PP2 (2 chunks) x CP2 x DP2`."""
    parts = []
    if layout.tensor_parallel > 1:
        parts.append(f"TP{layout.tensor_parallel}" + ("+SP" if layout.sequence_parallel else ""))
    if layout.pipeline_parallel > 1:
        chunks = layout.virtual_pipeline
        uneven = layout.first_stage_layers or layout.last_stage_layers
        notes = [f"{chunks} chunks"] if chunks > 1 else []
        notes += ["uneven"] if uneven else []
        parts.append(f"PP{layout.pipeline_parallel}" + (f" ({', '.join(notes)})" if notes else ""))
    if layout.context_parallel > 1:
        parts.append(f"CP{layout.context_parallel}")
    if layout.data_parallel > 1:
        parts.append(f"DP{layout.data_parallel}")
    return " x ".join(parts) or "one process"
