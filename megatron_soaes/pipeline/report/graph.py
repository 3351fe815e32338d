"""The graph of a run: a box for each stage, a line from what makes a file to what reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from markupsafe import Markup

from megatron_soaes.pipeline.report.stages import StageEntry
from megatron_soaes.pipeline.report.svg import Key, element, figure, text
from megatron_soaes.pipeline.status import State

BOX = (112, 38)
GAP = (22, 11)
MARGIN = 4
LONGEST_NAME = 17
"""Characters that fit into a box; the whole name is shown under the mouse."""

MADE_UP = ("preprocess", "import")
"""Kinds whose stages the recipe does not name: there the kind is the beginning of the name."""

Place = tuple[int, int]
"""Column and row."""


def graph(stages: Sequence[StageEntry]) -> Markup:
    """All stages, coloured by state. Lines that a longer way implies are left out."""
    reads = {stage.name: stage.reads for stage in stages}
    places = place(stages)
    lines = [
        _line(places[maker], places[name], f"{maker} → {name}")
        for name, makers in without_shortcuts(reads).items()
        for maker in makers
    ]
    boxes = [_box(stage, places[stage.name]) for stage in stages]
    corner = tuple(max((p[axis] for p in places.values()), default=0) + 1 for axis in (0, 1))
    size = (_corner((corner[0], 0))[0] - GAP[0] + MARGIN, _corner((0, corner[1]))[1])
    present = {stage.state for stage in stages}
    legend = [Key(str(state), f"state {state}") for state in State if state in present]
    return figure(size, "Stages of the run and what each reads", [*lines, *boxes], legend)


def without_shortcuts(reads: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What each stage reads, without makers that another of its makers depends on anyway."""
    reached: dict[str, set[str]] = {}
    """All that each stage depends on; makers come before their readers."""
    for name, makers in reads.items():
        reached[name] = set(makers).union(*(reached[maker] for maker in makers))
    return {
        name: [one for one in makers if not any(one in reached[other] for other in makers)]
        for name, makers in reads.items()
    }


def place(stages: Sequence[StageEntry]) -> dict[str, Place]:
    """A column right of all that a stage reads, and there the row of one of its makers.

    What reads nothing stands right before its first reader; imports come first, so that a model's
    line is straight.
    """
    columns = _columns(stages)
    rows: dict[str, int] = {}
    for column in range(max(columns.values(), default=-1) + 1):
        here = [stage for stage in stages if columns[stage.name] == column]
        readers = [stage for stage in here if stage.reads]
        readers.sort(key=lambda stage: min(rows[maker] for maker in stage.reads))
        sources = [stage for stage in here if not stage.reads]
        sources.sort(key=lambda stage: stage.kind != "import")
        taken: set[int] = set()
        for stage in [*readers, *sources]:
            row = min((rows[maker] for maker in stage.reads), default=0)
            while row in taken:
                row += 1
            taken.add(row)
            rows[stage.name] = row
    return {stage.name: (columns[stage.name], rows[stage.name]) for stage in stages}


def _columns(stages: Sequence[StageEntry]) -> dict[str, int]:
    columns: dict[str, int] = {}
    for stage in stages:
        columns[stage.name] = max((columns[maker] + 1 for maker in stage.reads), default=0)
    for stage in stages:
        readers = [columns[one.name] for one in stages if stage.name in one.reads]
        if not stage.reads and readers:
            columns[stage.name] = min(readers) - 1
    return columns


def _corner(place: Place) -> tuple[float, float]:
    """Left upper corner of a box."""
    return (
        MARGIN + place[0] * (BOX[0] + GAP[0]),
        MARGIN + place[1] * (BOX[1] + GAP[1]),
    )


def _line(start: Place, end: Place, says: str) -> Markup:
    (x1, y1), (x2, y2) = _corner(start), _corner(end)
    x1, y1, y2 = x1 + BOX[0], y1 + BOX[1] / 2, y2 + BOX[1] / 2
    bend = x1 + GAP[0] / 2
    path = f"M{x1:g},{y1:g} C{bend:g},{y1:g} {x2 - GAP[0] / 2:g},{y2:g} {x2:g},{y2:g}"
    return element("path", element("title", says), d=path, class_="edge")


def _box(stage: StageEntry, place: Place) -> Markup:
    x, y = _corner(place)
    name = stage.name.removeprefix(f"{stage.kind}-") if stage.kind in MADE_UP else stage.name
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 1]}…"
    says = f"{stage.name}: {stage.state}. {stage.why or stage.directory}"
    return element(
        "g",
        element("title", says),
        element("rect", x=x, y=y, width=BOX[0], height=BOX[1], rx=4),
        text(x + 7, y + 16, name, "strong"),
        text(x + 7, y + 30, f"{stage.kind}, {_state(stage)}", "tick"),
        class_=f"stage {stage.state}",
    )


def _state(stage: StageEntry) -> str:
    """The state in few characters: a time, a share of the steps, or its name."""
    if stage.state is State.DONE and stage.seconds is not None:
        seconds = round(stage.seconds)
        return f"{seconds} s" if seconds < 60 else str(timedelta(seconds=seconds))
    progress = stage.progress
    if stage.state is State.RUNNING and progress and progress.steps:
        return f"{progress.step / progress.steps:.0%}"
    return str(stage.state)
