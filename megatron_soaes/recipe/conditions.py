"""`name operator number`: the form that gates and targets share."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import NamedTuple

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
FORM = re.compile(rf"\s*([^\s<>=]+)\s*({'|'.join(OPERATORS)})\s*(\S+)(\s+points?)?\s*")


class Condition(NamedTuple):
    """What such a text says."""

    name: str
    operator: str
    """One of `OPERATORS`."""
    bound: float
    in_points: bool
    """Whether `point` or `points` follows the number."""


def parse_condition(text: str) -> Condition | None:
    """Read `name operator number`; None for anything else, and for a number that is not finite."""
    match = FORM.fullmatch(text)
    bound = number(match[3]) if match else math.nan
    if match is None or not math.isfinite(bound):
        return None
    return Condition(match[1], match[2], bound, match[4] is not None)


def number(text: str) -> float:
    """The number that a text is, NaN for none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
