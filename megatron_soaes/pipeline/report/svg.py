"""The few elements of SVG that the figures are drawn with. Colours are classes of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

COLOURS = 8
"""Colours of the style sheet, its classes c0 to c7."""


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    name: str
    css: str


def colour(number: int) -> str:
    """The class of the so-manieth series; after the last the first comes again."""
    return f"c{number % COLOURS}"


def element(name: str, *children: str, **attributes: object) -> Markup:
    """`<name attributes>children</name>`, everything in it escaped but Markup.

    `class_` stands for `class`; other underscores become hyphens. Lengths are rounded to a tenth.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, Markup("").join(children))


def text(x: float, y: float, words: str, css: str, anchor: str = "start") -> Markup:
    """Words on a base line."""
    return element("text", words, x=x, y=y, class_=css, text_anchor=anchor)


def line(start: tuple[float, float], end: tuple[float, float], css: str) -> Markup:
    """A straight line."""
    return element("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_=css)


def dot(x: float, y: float, says: str, css: str, radius: float = 3.5) -> Markup:
    """A point that tells its value under the mouse."""
    return element("circle", element("title", says), cx=x, cy=y, r=radius, class_=css)


def figure(
    size: tuple[float, float], title: str, parts: Sequence[Markup], legend: Sequence[Key] = ()
) -> Markup:
    """A drawing of width and height `size`, which the page scales, with its legend below."""
    drawing = element(
        "svg",
        *parts,
        width=size[0],
        viewBox=f"0 0 {size[0]:g} {size[1]:g}",
        role="img",
        aria_label=title,
    )
    keys = [element("span", element("i", class_=key.css), key.name) for key in legend]
    caption = element("figcaption", *keys, class_="legend") if keys else Markup()
    return element("figure", element("div", drawing, class_="drawing"), caption)


def _value(value: object) -> object:
    return f"{round(value, 1):g}" if isinstance(value, float) else value
