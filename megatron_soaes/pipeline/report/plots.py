"""Plots: lines over steps or draft lengths, estimates with their intervals, bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from data_prep.curation.report.figures import short_number
from megatron_soaes.pipeline.report.svg import Key, dot, element, figure, line, text

WIDTH, HEIGHT = 520, 290
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 30, 44
WIDE = 860
LABELS_END, PLOT_END = 250, 800
ROW = 20
LOGARITHMIC_FROM = 6.0
"""A largest value so many times the smallest is drawn on a logarithmic axis."""
SMALLEST_SPREAD = 1e-6
"""Of an axis, as a share of its largest value; what is smaller itself counts as 0."""
LONGEST_LABEL = 38
MOST_UNITS = 10
"""So many of what is counted have a tick each."""


@dataclass(frozen=True)
class Series:
    """Points of one colour, joined by a line."""

    name: str
    points: Sequence[tuple[float, float]]
    css: str
    dashed: bool = False
    dots: bool = False
    """Whether each point is one measurement, to be seen as such."""
    intervals: Sequence[tuple[float, float]] = ()
    """Of each point, low and high."""


@dataclass(frozen=True)
class Dot:
    """An estimate of one checkpoint in a row of `estimates`."""

    name: str
    value: float
    low: float
    high: float
    css: str


@dataclass(frozen=True)
class Bar:
    """A row of `bars`: a whole and the part of it that matters most."""

    name: str
    whole: int
    part: int


@dataclass(frozen=True)
class Scale:
    """From values to lengths in the drawing."""

    ticks: Sequence[float]
    place: Callable[[float], float]


def lines(
    series: Sequence[Series],
    x: str,
    y: str,
    *,
    at: float | None = None,
    from_zero: bool = False,
    marked: tuple[float, float, str] | None = None,
) -> Markup:
    """Series over a common axis; `x` and `y` name the axes, with their units.

    `at` draws a level to compare with; `marked` rings a point and says what it is. Without
    `from_zero` the axis begins near the smallest value, and is logarithmic where values differ
    much.
    """
    xs = [point[0] for one in series for point in one.points]
    ys = [point[1] for one in series for point in one.points]
    ys += [bound for one in series for interval in one.intervals for bound in interval]
    ys += [] if at is None else [at]
    across = _linear(min(xs), max(xs), (LEFT, WIDTH - RIGHT), whole=True)
    logarithmic = (
        not from_zero and min(ys) > SMALLEST_SPREAD and max(ys) / min(ys) >= LOGARITHMIC_FROM
    )
    span = (HEIGHT - BOTTOM, TOP)
    up = _logarithmic if logarithmic else _linear
    upwards = up(0.0 if from_zero else min(ys), max(ys), span)
    parts = [
        *_axes(across, upwards),
        text(4, 14, y + (", log scale" if logarithmic else ""), "axis"),
    ]
    parts.append(text(WIDTH - RIGHT, HEIGHT - 6, x, "axis", "end"))
    if at is not None:
        level = upwards.place(at)
        parts.append(line((LEFT, level), (WIDTH - RIGHT, level), "level"))
    for one in series:
        parts += _series(one, across, upwards)
    if marked is not None:
        place = (across.place(marked[0]), upwards.place(marked[1]))
        parts.append(dot(*place, marked[2], "ring", 7))
    return figure((WIDTH, HEIGHT), f"{y} by {x}", parts, [Key(s.name, _key(s)) for s in series])


def estimates(rows: Sequence[tuple[str, Sequence[Dot]]], unit: str) -> Markup:
    """A row for each measure: the estimates of the checkpoints with their intervals."""
    dots = [one for _, row in rows for one in row]
    across = _linear(
        min(0.0, *(one.low for one in dots)), max(one.high for one in dots), (LABELS_END, PLOT_END)
    )
    parts: list[Markup] = []
    y = 14.0
    for name, row in rows:
        height = max(ROW, 9 * len(row) + 8)
        parts.append(text(LABELS_END - 12, y + height / 2 + 4, _short(name), "label", "end"))
        parts.append(line((LABELS_END, y + height), (PLOT_END, y + height), "grid"))
        for number, one in enumerate(row):
            level = y + height / 2 + 9 * (number - (len(row) - 1) / 2)
            low, high = across.place(one.low), across.place(one.high)
            parts.append(line((low, level), (high, level), f"interval {one.css}"))
            says = f"{one.name}, {name}: {one.value:.4g} {unit} [{one.low:.4g}, {one.high:.4g}]"
            parts.append(dot(across.place(one.value), level, says, one.css))
        y += height
    for tick in across.ticks:
        place = across.place(tick)
        parts.insert(0, line((place, 10), (place, y), "grid"))
        parts.append(text(place, y + 16, number_of(tick), "tick", "middle"))
    parts.append(text(PLOT_END, y + 34, unit, "axis", "end"))
    legend = {one.name: Key(one.name, one.css) for one in dots}
    title = f"Measures with their 95 % intervals, {unit}"
    return figure((WIDE, y + 42), title, parts, list(legend.values()))


def bars(rows: Sequence[Bar], unit: str, part: str) -> Markup:
    """A bar for each row; `part` names the strong beginning of it."""
    longest = max(row.whole for row in rows)
    across = _linear(0.0, max(longest, 1), (LABELS_END, PLOT_END - 70))
    start = across.place(0)
    parts = []
    for number, row in enumerate(rows):
        y = 8 + ROW * number
        parts.append(text(LABELS_END - 12, y + 13, _short(row.name), "label", "end"))
        for amount, css in ((row.whole, "pale"), (row.part, "c0")):
            says = element("title", f"{row.name}: {amount:,} {unit}")
            width = across.place(amount) - start
            bar = {"x": start, "y": y + 2.0, "width": width, "height": ROW - 7}
            parts.append(element("rect", says, class_=css, **bar))
        share = f" ({row.part / row.whole:.0%} {part})" if row.part < row.whole else ""
        end = across.place(row.whole) + 8
        parts.append(text(end, y + 13, f"{short_number(row.whole)}{share}", "tick"))
    size = (WIDE, 8.0 + ROW * len(rows) + 4)
    return figure(
        size, f"{unit} by dataset", parts, [Key(part, "c0"), Key(f"other {unit}", "pale")]
    )


def number_of(value: float) -> str:
    """A number of an axis in few characters."""
    if value == int(value) and abs(value) >= 1000:
        return short_number(int(value))
    return f"{value:g}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


def _key(series: Series) -> str:
    return f"{series.css} dashed" if series.dashed else series.css


def _series(series: Series, across: Scale, upwards: Scale) -> list[Markup]:
    places = [(across.place(x), upwards.place(y)) for x, y in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [element("polyline", points=path, class_=f"line {_key(series)}")]
    for (x, _), (low, high) in zip(places, series.intervals, strict=False):
        ends = ((x, upwards.place(low)), (x, upwards.place(high)))
        parts.append(line(*ends, f"interval {series.css}"))
    if series.dots:
        for (x, y), point in zip(places, series.points, strict=True):
            says = f"{series.name}, {number_of(point[0])}: {point[1]:.4g}"
            parts.append(dot(x, y, says, series.css, 3))
    return parts


def _axes(across: Scale, upwards: Scale) -> list[Markup]:
    parts = []
    for tick in upwards.ticks:
        y = upwards.place(tick)
        parts.append(line((LEFT, y), (WIDTH - RIGHT, y), "grid"))
        parts.append(text(LEFT - 7, y + 4, number_of(tick), "tick", "end"))
    for tick in across.ticks:
        parts.append(
            text(across.place(tick), HEIGHT - BOTTOM + 18, number_of(tick), "tick", "middle")
        )
    return parts


def _linear(low: float, high: float, span: tuple[float, float], *, whole: bool = False) -> Scale:
    """Round ticks, about five. What is counted (`whole`) begins and ends with its values."""
    # Values that are all but equal get an axis that numbers can be told apart on.
    largest = max(abs(low), abs(high))
    least = SMALLEST_SPREAD * (largest if largest > SMALLEST_SPREAD else 1.0)
    rough = max(high - low, least) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * (1 - 1e-9))
    if whole:
        step = 1.0 if high - low <= MOST_UNITS else max(1.0, step)
        first, last = low, high if high > low else low + 1
    else:
        first, last = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
        last = max(last, first + step)
    begin = math.ceil(first / step - 1e-9)
    count = math.floor(last / step + 1e-9) - begin + 1
    ticks = [float(f"{step * (begin + n):.10g}") for n in range(count)]
    scale = (span[1] - span[0]) / (last - first)
    return Scale(ticks, lambda value: span[0] + (value - first) * scale)


def _logarithmic(low: float, high: float, span: tuple[float, float]) -> Scale:
    """Ticks at 1, 2 and 5 times powers of ten."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{n * 10.0**power:.10g}") for power in powers for n in (1, 2, 5)]
    first = max(tick for tick in ticks if tick <= low)
    last = min(tick for tick in [*ticks, 10.0 ** (powers[-1] + 1)] if tick >= high)
    scale = (span[1] - span[0]) / (math.log(last / first))
    shown = [tick for tick in ticks if first <= tick <= last]
    return Scale(shown, lambda value: span[0] + math.log(value / first) * scale)
