"""Figures as inline SVG. Colours are classes, which the page's style sheet sets for light and dark.

All lengths are in units of the drawing, which the page scales to its width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from data_prep.curation.report.summary import Passage

EN_DASH = "\N{EN DASH}"
WIDTH = 860
LABELS_END = 228
"""Right end of the labels of the funnel."""
PLOT_START, PLOT_END = 240, 640
ROW = 22
MOST_REASONS = 8
"""Reasons that a block shows; the rest stand in one row, and all of them in the table."""
LONGEST_LABEL = 32
"""Characters of a label of the funnel."""

HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 34, 52
MOST_VALUES = 12
"""Bars up to which each has its value written above it."""
MOST_LABELS = 16
WIDEST_SLOT = 90
"""Room of the bars of a label."""


@dataclass(frozen=True)
class Series:
    """Values of one colour, a bar each."""

    name: str
    css: str
    values: Sequence[int]


def funnel(passages: Sequence[Passage]) -> Markup:
    """The documents that stay after each block, and under each block what its reasons took.

    The bar of a reason stands where the documents it takes stood in the block's bar, so the bars
    step down to what the next block reads.
    """
    whole = passages[0].read.documents
    rows: list[Markup] = []
    y = 8
    for passage in passages:
        here = passage.read.documents
        value = f"{here:,} documents in"
        rows.append(_row(y, passage.name, "block", span=(0, here), whole=whole, value=value))
        y += ROW
        for name, documents in _shown(passage):
            value = f"\N{MINUS SIGN}{documents:,} ({percent(documents, whole)})"
            rows.append(
                _row(y, name, "gone", span=(here - documents, here), whole=whole, value=value)
            )
            here -= documents
            y += ROW
        y += 6
    left = passages[-1].kept.documents
    value = f"{left:,} documents left ({percent(left, whole)})"
    rows.append(_row(y, "left", "kept", span=(0, left), whole=whole, value=value))
    return _svg(y + ROW + 44, "Documents from block to block", [*_scale(whole, y + ROW + 4), *rows])


def histogram(
    series: Sequence[Series], labels: Sequence[str], x: str, y: str, *, at_edges: bool = False
) -> Markup:
    """Bars side by side for each label; `x` and `y` name the axes, with their units.

    `at_edges`: labels are where bars begin and end, one more than there are bars; else a label is
    what its bar is.
    """
    bars = len(series[0].values)
    top = max([1, *(value for one in series for value in one.values)])
    ticks = _ticks(top)
    plot = HEIGHT - TOP - BOTTOM
    parts = [_text(LEFT, 14, y, "axis")]
    slot = min((WIDTH - LEFT - RIGHT) / bars, WIDEST_SLOT)
    for tick in ticks:
        level = TOP + plot * (1 - tick / ticks[-1])
        parts.append(_line(LEFT, level, LEFT + slot * bars, level))
        parts.append(_text(LEFT - 8, level + 4, f"{tick:,}", "tick", "end"))
    every = math.ceil(len(labels) / MOST_LABELS)
    for index, label in enumerate(labels):
        if index % every == 0:
            place = LEFT + slot * (index if at_edges else index + 0.5)
            parts.append(_text(place, HEIGHT - BOTTOM + 17, label, "tick", "middle"))
    width = slot * 0.8 / len(series)
    for number, one in enumerate(series):
        for index, value in enumerate(one.values):
            place = LEFT + slot * (index + 0.1) + width * number
            height = max(plot * value / ticks[-1], 1.5 if value else 0)
            label = EN_DASH.join(labels[index : index + 2]) if at_edges else labels[index]
            says = f"{one.name}, {label}: {value:,} {y}"
            parts.append(_rect((place, TOP + plot - height), (width, height), one.css, says))
            if len(series) == 1 and bars <= MOST_VALUES:
                above = TOP + plot - height - 5
                parts.append(_text(place + width / 2, above, f"{value:,}", "value", "middle"))
    parts.append(_text(LEFT, HEIGHT - 8, x, "axis"))
    return _svg(HEIGHT, f"{y} by {x}", parts + _legend(series))


def percent(part: int, whole: int) -> str:
    """A share with one decimal; what is not nothing or not all is not called so, and of nothing
    there is no share but a dash."""
    if not whole:
        return EN_DASH
    share = part / whole
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 < share < 1:
        return ">99.9%"
    return f"{share:.1%}"


def short_number(number: int) -> str:
    """A number of a scale in few characters: 512, 1,024, 65.5k, 1.05M."""
    if number < 10_000:
        return f"{number:,}"
    thousands = number < 1_000_000
    return f"{number / 1000:.3g}k" if thousands else f"{number / 1_000_000:.3g}M"


def _shown(passage: Passage) -> list[tuple[str, int]]:
    """The largest reasons and the documents they took, and the rest as one."""
    losses = [(loss.reason, loss.dropped.documents) for loss in passage.losses]
    if len(losses) <= MOST_REASONS + 1:
        return losses
    rest = losses[MOST_REASONS:]
    total = sum(documents for _, documents in rest)
    return [*losses[:MOST_REASONS], (f"{len(rest)} other reasons", total)]


def _row(y: float, name: str, css: str, *, span: tuple[int, int], whole: int, value: str) -> Markup:
    """A label, a bar over the documents of `span`, and a value."""
    wide = (PLOT_END - PLOT_START) / max(whole, 1)
    start, documents = PLOT_START + span[0] * wide, span[1] - span[0]
    width = max(documents * wide, 1) if documents else 0
    short = name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"
    weight = "label" if css == "gone" else "strong"
    return Markup("").join(
        [
            _text(LABELS_END, y + 14, short, weight, "end"),
            _rect((start, y + 3), (width, ROW - 6), css, f"{name}: {value}"),
            _text(PLOT_END + 12, y + 14, value, weight),
        ]
    )


def _scale(whole: int, bottom: float) -> list[Markup]:
    """Lines across the funnel, and under them what they stand for."""
    parts = []
    for tick in _ticks(whole):
        if tick <= whole:
            x = PLOT_START + (PLOT_END - PLOT_START) * tick / max(whole, 1)
            parts.append(_line(x, 4, x, bottom))
            parts.append(_text(x, bottom + 15, short_number(tick), "tick", "middle"))
    middle = (PLOT_START + PLOT_END) / 2
    return [*parts, _text(middle, bottom + 33, "documents", "axis", "middle")]


def _ticks(top: int) -> list[int]:
    """Four to six round numbers from 0 to at least `top`."""
    rough = max(top, 1) / 5
    power = 10 ** math.floor(math.log10(rough)) if rough >= 1 else 1
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
    return list(range(0, math.ceil(max(top, 1) / step) * step + 1, step))


def _legend(series: Sequence[Series]) -> list[Markup]:
    if len(series) == 1:
        return []
    parts = []
    for number, one in enumerate(series):
        x = LEFT + 130 * (number + 1)
        parts.append(_rect((x, 5), (12, 12), one.css, one.name))
        parts.append(_text(x + 18, 15, one.name, "label"))
    return parts


def _svg(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<div class="figure"><svg viewBox="0 0 {} {:g}" role="img" aria-label="{}">{}</svg></div>'
    ).format(WIDTH, height, title, Markup("\n").join(parts))


def _text(x: float, y: float, text: str, css: str, anchor: str = "start") -> Markup:
    tag = Markup('<text x="{:g}" y="{:g}" class="{}" text-anchor="{}">{}</text>')
    return tag.format(round(x, 1), round(y, 1), css, anchor, text)


def _rect(corner: tuple[float, float], size: tuple[float, float], css: str, says: str) -> Markup:
    tag = '<rect x="{:g}" y="{:g}" width="{:g}" height="{:g}" class="{}"><title>{}</title></rect>'
    return Markup(tag).format(*(round(number, 1) for number in (*corner, *size)), css, says)


def _line(x1: float, y1: float, x2: float, y2: float) -> Markup:
    tag = Markup('<line x1="{:g}" y1="{:g}" x2="{:g}" y2="{:g}"/>')
    return tag.format(*(round(number, 1) for number in (x1, y1, x2, y2)))
